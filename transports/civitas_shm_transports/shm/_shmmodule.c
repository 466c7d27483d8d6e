/* Thin binding of native/ to Python (limited API 3.11): argument checks, buffers, error mapping. No algorithm here.
 *
 * Rules of this file: every method runs under the GIL on the thread of the process's event loop; only the spin releases
 * it. Bytes given to us are copied before the call returns; bytes we return are private copies. Expected outcomes are
 * numbers (see civitas_shm/transport.py), exceptions are for misuse and for a run that cannot be attached.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "directory.h"

#define TYPE_CACHE 64
#define REPLIES_AT_ONCE 256
#define READY_AT_ONCE 1024

/* What this process knows about one mailbox; entries are in-hand entries, one bit each. */
typedef struct {
    PyObject *name;      /* str, made at first use */
    uint64_t redeliver;  /* entries of dead readers that this process inherited */
    uint64_t taken;      /* entries that it took itself and has not released */
    bool listens;
} mailbox_view;

typedef struct {
    PyObject_HEAD
    cv_port port;
    bool open, spinning;
    int mail_fd, arena_fd;
    mailbox_view *views;              /* by mailbox */
    PyObject *type_cache[TYPE_CACHE]; /* str of recent message types, by a hash of their bytes */
    PyObject *closed_error;           /* civitas_shm.errors.TransportClosed */
    PyObject *pending;                /* dict: correlation -> future of an ask of this process; see bind */
    PyObject *wake;                   /* called when an ask is posted while the process is parked */
    PyObject *done, *set_result;      /* names of the future's methods */
} PortObject;

static bool is_open(PortObject *self) {
    if (self->open) return true;
    PyErr_SetString(self->closed_error,
                    "This process has left the run (stopped, or a forked child): nothing can be sent or received here.");
    return false;
}

/* --- arguments ---------------------------------------------------------------------------------------------------- */

static bool as_u32(PyObject *object, const char *what, uint32_t *out) {
    unsigned long value = PyLong_AsUnsignedLong(object);
    if (value == (unsigned long)-1 && PyErr_Occurred()) return false;
    if (value > UINT32_MAX) {
        PyErr_Format(PyExc_OverflowError, "%s does not fit 32 bits: %lu", what, value);
        return false;
    }
    *out = (uint32_t)value;
    return true;
}
static bool as_u64(PyObject *object, uint64_t *out) {
    *out = PyLong_AsUnsignedLongLong(object);
    return !(*out == (uint64_t)-1 && PyErr_Occurred());
}
static bool count_is(Py_ssize_t n, Py_ssize_t least, Py_ssize_t most, const char *name) {
    if (n >= least && n <= most) return true;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd to %zd arguments, %zd given", name, least, most, n);
    return false;
}
/* The 128 bytes of a header, copied; None leaves *present false. */
static bool as_header(PyObject *object, cv_header *h, bool *present) {
    *present = false;
    if (object == NULL || object == Py_None) return true;
    char *at;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(object, &at, &size) < 0) return false;
    if (size != sizeof *h) {
        PyErr_Format(PyExc_ValueError, "a cause is the %zu header bytes of a message, not %zd bytes", sizeof *h, size);
        return false;
    }
    memcpy(h, at, sizeof *h);
    *present = true;
    return true;
}

/* --- str of names and types, made once ----------------------------------------------------------------------------- */

/* Decoded from a private copy: bytes in shared memory may change under the decoder. */
static PyObject *text_of(const void *at, size_t size) {
    PyObject *copy = PyBytes_FromStringAndSize(at, (Py_ssize_t)size);
    PyObject *text = copy ? PyUnicode_FromEncodedObject(copy, "utf-8", "replace") : NULL;
    Py_XDECREF(copy);
    return text;
}

static PyObject *name_of(PortObject *self, uint32_t mailbox) {
    cv_run *run = &self->port.run;
    if (mailbox == UINT32_MAX) return PyUnicode_FromString("_runtime"); /* SENDER_PROGRAM of transport.py */
    if (mailbox >= cv_records(run)) return PyUnicode_FromString("?");
    PyObject **name = &self->views[mailbox].name;
    if (!*name) {
        cv_record *r = cv_record_at(run, mailbox);
        size_t size = r->name_len;
        *name = text_of(r->name, size > CV_NAME_MAX ? CV_NAME_MAX : size);
        if (!*name) return NULL;
    }
    Py_INCREF(*name);
    return *name;
}

static PyObject *type_of(PortObject *self, const uint8_t *at, size_t size) {
    char copy[64];
    if (size > sizeof copy) return text_of(at, size);
    memcpy(copy, at, size);
    uint64_t h = size;
    for (size_t i = 0; i < size; i++) h = h * 31 + (uint8_t)copy[i];
    PyObject **place = &self->type_cache[h % TYPE_CACHE];
    if (*place) {
        Py_ssize_t known_size;
        const char *known = PyUnicode_AsUTF8AndSize(*place, &known_size);
        if (known && (size_t)known_size == size && !memcmp(known, copy, size)) {
            Py_INCREF(*place);
            return *place;
        }
    }
    PyObject *made = PyUnicode_DecodeUTF8(copy, (Py_ssize_t)size, "replace");
    if (!made) return NULL;
    PyObject *old = *place;
    Py_INCREF(made);
    *place = made;
    Py_XDECREF(old);
    return made;
}

/* (number, header, type, sender, payload, last); steals `first` and `last`. */
static PyObject *message_tuple(PortObject *self, PyObject *first, const mb_message *m, PyObject *last) {
    PyObject *tuple = PyTuple_New(6);
    PyObject *header = PyBytes_FromStringAndSize((const char *)&m->header, sizeof m->header);
    PyObject *type = type_of(self, m->body, m->header.type_len);
    PyObject *sender = name_of(self, m->header.sender);
    PyObject *payload =
        PyBytes_FromStringAndSize((const char *)m->body + m->header.type_len, (Py_ssize_t)m->header.payload_len);
    if (!tuple || !first || !header || !type || !sender || !payload || !last) {
        Py_XDECREF(tuple); Py_XDECREF(first); Py_XDECREF(header); Py_XDECREF(type);
        Py_XDECREF(sender); Py_XDECREF(payload); Py_XDECREF(last);
        return NULL;
    }
    PyTuple_SetItem(tuple, 0, first);
    PyTuple_SetItem(tuple, 1, header);
    PyTuple_SetItem(tuple, 2, type);
    PyTuple_SetItem(tuple, 3, sender);
    PyTuple_SetItem(tuple, 4, payload);
    PyTuple_SetItem(tuple, 5, last);
    return tuple;
}

/* --- sending ------------------------------------------------------------------------------------------------------- */

/* payload bytes and type text into a post; the views live as long as the arguments. */
static bool fill_post(port_post *post, PyObject *payload, PyObject *type) {
    char *bytes;
    Py_ssize_t size, type_size;
    if (PyBytes_AsStringAndSize(payload, &bytes, &size) < 0) return false;
    const char *text = PyUnicode_AsUTF8AndSize(type, &type_size);
    if (!text) return false;
    post->payload = bytes;
    post->payload_len = (uint64_t)size;
    post->type = text;
    post->type_len = (uint64_t)type_size;
    return true;
}

static bool fill_optional(port_post *post, PyObject *const *args, Py_ssize_t n, Py_ssize_t at, cv_header *cause) {
    bool present;
    uint32_t lane = CV_LANE_NORMAL;
    if (!as_header(n > at ? args[at] : NULL, cause, &present)) return false;
    if (present) post->cause = cause;
    if (n > at + 1 && !as_u32(args[at + 1], "lane", &lane)) return false;
    post->lane = lane;
    if (n > at + 2) {
        long priority = PyLong_AsLong(args[at + 2]);
        if (priority == -1 && PyErr_Occurred()) return false;
        post->priority = (int32_t)priority;
    }
    return true;
}

static PyObject *outcome(int rc) {
    if (rc == PORT_UNKNOWN) {
        PyErr_SetString(PyExc_IndexError, "no mailbox of that number");
        return NULL;
    }
    return PyLong_FromLong(rc);
}

/* post(mailbox, payload, type, sender, cause=None, lane=2, priority=0) -> outcome */
static PyObject *port_post_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    port_post post = {0};
    cv_header cause;
    if (!is_open(self) || !count_is(n, 4, 7, "post") || !as_u32(args[0], "mailbox", &post.mailbox) ||
        !fill_post(&post, args[1], args[2]) || !as_u32(args[3], "sender", &post.sender) ||
        !fill_optional(&post, args, n, 4, &cause))
        return NULL;
    return outcome(port_send(&self->port, &post));
}

/* post_ask(mailbox, payload, type, sender, future, deadline_ns, cause=None, lane=2, priority=0) -> correlation, or
 * outcome < 0. The future is kept in `pending` until the reply has come or the ask is forgotten. */
static PyObject *port_ask_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    port_post post = {.flags = CV_FLAG_ASK};
    cv_header cause;
    if (!is_open(self) || !count_is(n, 6, 9, "post_ask") || !as_u32(args[0], "mailbox", &post.mailbox) ||
        !fill_post(&post, args[1], args[2]) || !as_u32(args[3], "sender", &post.sender) ||
        !as_u64(args[5], &post.deadline_ns) || !fill_optional(&post, args, n, 6, &cause))
        return NULL;
    if (!self->pending) return PyErr_Format(PyExc_RuntimeError, "post_ask before bind");
    if (PyDict_Size(self->pending) >= (Py_ssize_t)PORT_REPLY_PLACES) return PyLong_FromLong(PORT_NO_MEMORY);
    cv_port *port = &self->port;
    post.correlation = cv_correlation(port->run.me, port->run.incarnation, ++port->asks);
    cv_cell *cell = port_cell(port, post.sender);
    if (cell) at_poke(&cell->asking, 1 + (uint64_t)post.mailbox);
    PyObject *key = PyLong_FromUnsignedLongLong(post.correlation);
    if (!key || PyDict_SetItem(self->pending, key, args[4]) < 0) { /* before the post: then nothing can fail after it */
        Py_XDECREF(key);
        return NULL;
    }
    int rc = port_send(port, &post);
    if (rc == PORT_SENT) {
        /* The reply is near: look for it before sleeping. */
        if (at_peek(&cv_slot_at(&port->run, port->run.me)->park_seq) & 1) {
            PyObject *none = PyObject_CallObject(self->wake, NULL);
            if (!none) PyErr_WriteUnraisable(self->wake); /* the message is committed: no exception may deny it */
            Py_XDECREF(none);
        }
        return key;
    }
    int forgotten = PyDict_DelItem(self->pending, key);
    Py_DECREF(key);
    if (cell) at_poke(&cell->asking, 0);
    return forgotten < 0 ? NULL : outcome(rc);
}

/* A reply that cannot be committed for want of memory: an error of the replier, because the asker still waits. */
static PyObject *reply_refused(PortObject *self, int rc, uint64_t size) {
    PyObject *errors = PyImport_ImportModule("civitas_shm.errors"), *error = NULL;
    const char *name = rc == PORT_TOO_LARGE ? "PayloadTooLarge" : "SharedMemoryFull";
    PyObject *type = errors ? PyObject_GetAttrString(errors, name) : NULL;
    if (type && rc == PORT_TOO_LARGE)
        error = PyObject_CallFunction(type, "KK", size, port_payload_max(&self->port));
    else if (type)
        error = PyObject_CallFunction(type, "s", "There is no memory for this reply: earlier replies of this process have "
                                                 "not been collected. Raise transport.arena_mb in the topology.");
    if (error) PyErr_SetObject(type, error);
    Py_XDECREF(error);
    Py_XDECREF(type);
    Py_XDECREF(errors);
    return NULL;
}

/* post_reply(cause, payload, type, sender, failed=False) -> bool: False, nobody waits any more. PayloadTooLarge,
 * SharedMemoryFull: somebody does, and gets nothing yet. */
static PyObject *port_reply_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    port_post post = {0};
    cv_header cause;
    bool present;
    if (!is_open(self) || !count_is(n, 4, 5, "post_reply") || !as_header(args[0], &cause, &present) ||
        !fill_post(&post, args[1], args[2]) || !as_u32(args[3], "sender", &post.sender))
        return NULL;
    if (!present) Py_RETURN_FALSE;
    if (n > 4) {
        int failed = PyObject_IsTrue(args[4]);
        if (failed < 0) return NULL;
        if (failed) post.flags |= CV_FLAG_FAILED;
    }
    int rc = port_reply(&self->port, &cause, &post);
    if (rc == PORT_NO_MEMORY || rc == PORT_TOO_LARGE) return reply_refused(self, rc, post.payload_len);
    return PyBool_FromLong(rc == PORT_SENT);
}

/* --- receiving ------------------------------------------------------------------------------------------------------ */

/* What dead readers left to this process and it has not taken itself. */
static void inherit(PortObject *self, uint32_t mailbox, cv_mailbox *m) {
    self->views[mailbox].redeliver |= mb_in_hand_of(m, self->port.run.me) & ~self->views[mailbox].taken;
}

/* The next message that a dead reader had in hand. */
static bool next_redelivery(PortObject *self, uint32_t mailbox, cv_mailbox *m, mb_message *out) {
    uint64_t *entries = &self->views[mailbox].redeliver;
    while (*entries) {
        unsigned entry = mb_oldest_in_hand(&self->port.run, m, mailbox, *entries);
        *entries &= ~(1ull << entry);
        out->garbage = false;
        if (mb_redeliver(&self->port.run, m, mailbox, entry, out)) return true;
        if (out->garbage) port_count(m, &cv_cell_at(&self->port.run, mailbox)->garbage, 1);
    }
    return false;
}

static void release(PortObject *self, uint32_t mailbox, cv_mailbox *m, unsigned entry, uint64_t now_ns) {
    if (!mb_release(&self->port.run, m, entry)) return;
    self->views[mailbox].taken &= ~(1ull << entry);
    port_end(&self->port, mailbox, now_ns);
}

/* A mailbox that exists. NULL: its header is damaged (then nothing can be had from it), or, with an exception set, there
 * is none of that number. */
static cv_mailbox *mailbox_at(PortObject *self, uint32_t mailbox) {
    cv_mailbox *m = cv_mailbox_at(&self->port.run, mailbox);
    if (!m && mailbox >= cv_records(&self->port.run)) PyErr_SetString(PyExc_IndexError, "no mailbox of that number");
    return m;
}

/* take(mailbox, done=-1) -> (token, header, type, sender, payload, deliveries) | None */
static PyObject *port_take_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 2, "take") || !as_u32(args[0], "mailbox", &mailbox)) return NULL;
    cv_port *port = &self->port;
    cv_mailbox *m = mailbox_at(self, mailbox);
    if (!m && PyErr_Occurred()) return NULL;
    if (!m) Py_RETURN_NONE;
    uint64_t now = 0;
    if (n > 1) {
        long token = PyLong_AsLong(args[1]);
        if (token == -1 && PyErr_Occurred()) return NULL;
        if (token >= 0) {
            now = cv_now_ns(CLOCK_MONOTONIC);
            release(self, mailbox, m, token < (long)CV_HAND ? (unsigned)token : CV_HAND, now);
        }
    }
    mb_message message;
    if (!(self->views[mailbox].redeliver && next_redelivery(self, mailbox, m, &message)) &&
        port_take(port, mailbox, &message) != 1)
        Py_RETURN_NONE;
    self->views[mailbox].taken |= 1ull << message.entry;
    port_begin(port, mailbox, &message, now ? now : cv_now_ns(CLOCK_MONOTONIC));
    return message_tuple(self, PyLong_FromUnsignedLong(message.entry), &message,
                         PyLong_FromUnsignedLong(message.deliveries));
}

static PyObject *port_release_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox, token;
    if (!is_open(self) || !count_is(n, 2, 2, "release") || !as_u32(args[0], "mailbox", &mailbox) ||
        !as_u32(args[1], "token", &token))
        return NULL;
    cv_mailbox *m = cv_mailbox_at(&self->port.run, mailbox);
    if (m) release(self, mailbox, m, token, cv_now_ns(CLOCK_MONOTONIC));
    Py_RETURN_NONE;
}

/* listen(mailbox, on): from now on this process reads it; what a dead predecessor had in hand comes first. */
static PyObject *port_listen_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 2, 2, "listen") || !as_u32(args[0], "mailbox", &mailbox)) return NULL;
    int on = PyObject_IsTrue(args[1]);
    cv_run *run = &self->port.run;
    cv_mailbox *m = mailbox_at(self, mailbox);
    if (on < 0 || (!m && PyErr_Occurred())) return NULL;
    if (!m) Py_RETURN_NONE;
    self->views[mailbox].listens = on;
    if (!on) {
        at_and(&m->listening, ~(1ull << run->me));
        Py_RETURN_NONE;
    }
    self->views[mailbox].taken = 0; /* a restarted agent gets its predecessor's, too */
    inherit(self, mailbox, m);
    at_poke(&cv_cell_at(run, mailbox)->busy_since_ns, 0);
    at_poke(&cv_cell_at(run, mailbox)->asking, 0);
    at_poke(&cv_cell_at(run, mailbox)->wants_room_in, 0);
    at_or(&m->listening, 1ull << run->me);
    Py_RETURN_NONE;
}

/* Give a reply to the future that waits for it, if one still does. What goes wrong here (a loop that is closed) is told
 * and concerns that future alone: an exception would lose what else was announced. */
static void resolve(PortObject *self, PyObject *reply) {
    PyObject *key = PyTuple_GetItem(reply, 0);
    PyObject *future = self->pending ? PyDict_GetItemWithError(self->pending, key) : NULL;
    if (!future) return; /* forgotten: late, and dropped */
    Py_INCREF(future);
    PyObject *done = PyDict_DelItem(self->pending, key) == 0 ? PyObject_CallMethodObjArgs(future, self->done, NULL) : NULL;
    PyObject *none = done == Py_False ? PyObject_CallMethodObjArgs(future, self->set_result, reply, NULL) : NULL;
    if (PyErr_Occurred()) PyErr_WriteUnraisable(future);
    Py_XDECREF(none);
    Py_XDECREF(done);
    Py_DECREF(future);
}

/* The replies that have come go to their futures: (correlation, header, type, sender, payload, failed). They are copied
 * and gone: the asker's coroutine dies with this process, so nothing would be won by keeping them in hand. */
static bool collect_replies(PortObject *self, unsigned long *count) {
    cv_port *port = &self->port;
    uint32_t mine = port->run.me;
    cv_mailbox *m = cv_mailbox_at(&port->run, mine);
    mb_message message;
    for (unsigned i = 0; m && i < REPLIES_AT_ONCE; i++) {
        if (port_take(port, mine, &message) != 1) return true;
        cv_cell *asker = port_cell(port, message.header.asker);
        if (asker) at_poke(&asker->asking, 0);
        PyObject *failed = message.header.flags & CV_FLAG_FAILED ? Py_True : Py_False;
        Py_INCREF(failed);
        PyObject *tuple = message_tuple(self, PyLong_FromUnsignedLongLong(message.header.correlation), &message, failed);
        mb_release(&port->run, m, message.entry);
        if (!tuple) return false;
        resolve(self, tuple);
        Py_DECREF(tuple);
        ++*count;
    }
    if (m) cv_notify(&port->run, mine, 1ull << mine); /* more than one batch: come again */
    return true;
}

/* poll(spin_ns, may_park) -> (mailboxes, number of replies, alarm) | None: nothing was announced; and when may_park, this process
 * is asleep now: return to the loop, the doorbell will ring. */
static PyObject *port_poll_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint64_t spin_ns, alarm = 0;
    if (!is_open(self) || !count_is(n, 2, 2, "poll") || !as_u64(args[0], &spin_ns)) return NULL;
    bool may_park = args[1] == Py_True;
    cv_run *run = &self->port.run;
    uint32_t ready[READY_AT_ONCE], count;
    while (!(count = cv_collect(run, ready, READY_AT_ONCE, &alarm)) && !alarm) {
        bool found = false;
        if (spin_ns) {
            self->spinning = true;
            Py_BEGIN_ALLOW_THREADS
            found = cv_spin(run, spin_ns);
            Py_END_ALLOW_THREADS
            self->spinning = false;
        }
        if (!found && (!may_park || cv_park(run))) Py_RETURN_NONE;
    }
    PyObject *mailboxes = PyList_New(0), *result = NULL;
    unsigned long replies = 0;
    if (!mailboxes) goto out;
    bool mine = alarm & CV_ALARM_SCAN;
    for (uint32_t i = 0; mine && i < cv_records(run); i++) { /* a death: this process may be the heir */
        cv_mailbox *m = self->views[i].listens ? cv_mailbox_at(run, i) : NULL;
        if (m) inherit(self, i, m);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (ready[i] == run->me) {
            mine = true;
            continue;
        }
        PyObject *number = PyLong_FromUnsignedLong(ready[i]);
        if (!number || PyList_Append(mailboxes, number) < 0) {
            Py_XDECREF(number);
            goto out;
        }
        Py_DECREF(number);
    }
    if (mine && !collect_replies(self, &replies)) goto out;
    PyObject *number = PyLong_FromUnsignedLong(replies), *bits = PyLong_FromUnsignedLongLong(alarm);
    if (number && bits) result = PyTuple_Pack(3, mailboxes, number, bits);
    Py_XDECREF(number);
    Py_XDECREF(bits);
out:
    Py_XDECREF(mailboxes);
    return result;
}

/* bind(pending, wake): the dict of futures by correlation, and what to call when a parked process asks. */
static PyObject *port_bind_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    if (!is_open(self) || !count_is(n, 2, 2, "bind")) return NULL;
    if (!PyDict_Check(args[0])) return PyErr_Format(PyExc_TypeError, "pending must be a dict");
    Py_INCREF(args[0]);
    Py_INCREF(args[1]);
    Py_XDECREF(self->pending);
    Py_XDECREF(self->wake);
    self->pending = args[0];
    self->wake = args[1];
    Py_RETURN_NONE;
}

static PyObject *port_unpark_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    if (!is_open(self)) return NULL;
    cv_unpark(&self->port.run);
    Py_RETURN_NONE;
}

/* want_room(mailbox) -> 1: there is room already, do not sleep; 0: this process will be told; -1: no memory, and nothing is
 * on its way that could give some back */
static PyObject *port_want_room_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 1, "want_room") || !as_u32(args[0], "mailbox", &mailbox)) return NULL;
    if (!mailbox_at(self, mailbox) && PyErr_Occurred()) return NULL;
    return PyLong_FromLong(port_want_room(&self->port, mailbox));
}

/* note(sender, asking, wants_room_in): cells for `why`; each a mailbox or -1. */
static PyObject *port_note_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t sender;
    if (!is_open(self) || !count_is(n, 3, 3, "note") || !as_u32(args[0], "sender", &sender)) return NULL;
    long asking = PyLong_AsLong(args[1]), room = PyLong_AsLong(args[2]);
    if (PyErr_Occurred()) return NULL;
    cv_cell *cell = port_cell(&self->port, sender);
    if (cell) {
        at_poke(&cell->asking, asking < 0 ? 0 : 1 + (uint64_t)asking);
        at_poke(&cell->wants_room_in, room < 0 ? 0 : 1 + (uint64_t)room);
    }
    Py_RETURN_NONE;
}

/* --- state ----------------------------------------------------------------------------------------------------------- */

/* commit_state(mailbox, token, state) -> outcome */
static PyObject *port_commit_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    char *bytes;
    Py_ssize_t size;
    if (!is_open(self) || !count_is(n, 3, 3, "commit_state") || !as_u32(args[0], "mailbox", &mailbox)) return NULL;
    long token = PyLong_AsLong(args[1]);
    if ((token == -1 && PyErr_Occurred()) || PyBytes_AsStringAndSize(args[2], &bytes, &size) < 0) return NULL;
    cv_run *run = &self->port.run;
    cv_mailbox *m = cv_mailbox_at(run, mailbox);
    cv_header cause;
    bool with_cause = false;
    if (m && token >= 0 && token < (long)CV_HAND) { /* the id is read from the message in hand, not from the caller */
        const uint8_t *at = cv_chunk_at(run, cv_word_ref(at_load(&m->hand[token].ref)), sizeof cause);
        if (at) {
            memcpy(&cause, at, sizeof cause);
            with_cause = true;
        }
    }
    return outcome(port_commit_state(&self->port, mailbox, with_cause ? &cause : NULL, bytes, (uint64_t)size));
}

/* stored_state(mailbox) -> (state, id) | None */
static PyObject *port_stored_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 1, "stored_state") || !as_u32(args[0], "mailbox", &mailbox)) return NULL;
    mb_message state;
    if (!port_state(&self->port, mailbox, &state)) Py_RETURN_NONE;
    return Py_BuildValue("y#y#", state.body, (Py_ssize_t)state.header.payload_len, state.header.id,
                         (Py_ssize_t)sizeof state.header.id);
}

/* --- looking --------------------------------------------------------------------------------------------------------- */

static PyObject *port_records_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    return is_open(self) ? PyLong_FromUnsignedLong(cv_records(&self->port.run)) : NULL;
}
/* record(mailbox) -> (name, open); half closed, or with a damaged header, it is not open */
static PyObject *port_record_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 1, "record") || !as_u32(args[0], "mailbox", &mailbox)) return NULL;
    if (mailbox >= cv_records(&self->port.run)) return outcome(PORT_UNKNOWN);
    cv_mailbox *m = cv_mailbox_at(&self->port.run, mailbox);
    PyObject *name = name_of(self, mailbox);
    if (!name) return NULL;
    return Py_BuildValue("NN", name, PyBool_FromLong(m && !mb_is_closed(&self->port.run, m, mailbox)));
}

/* A cell's word of the form "1 + mailbox, 0 = none" as a mailbox or -1. */
static long long mailbox_or_none(const cv_run *run, uint64_t word) {
    return word - 1 < run->mailboxes ? (long long)(word - 1) : -1;
}

/* stats(mailbox) -> (overflow, capacity, waiting, in_hand, handled, sent, redelivered, dropped, garbage, busy_since_ns, asking,
 * wants_room_in, readers bits, histogram list, bytes_in, bytes_out) */
static PyObject *port_stats_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 1, "stats") || !as_u32(args[0], "mailbox", &mailbox)) return NULL;
    cv_run *run = &self->port.run;
    cv_mailbox *m = mailbox_at(self, mailbox);
    if (!m && PyErr_Occurred()) return NULL;
    cv_cell *c = cv_cell_at(run, mailbox);
    cv_ring r;
    uint64_t waiting = 0, refs[CV_HAND];
    unsigned overflow = m ? m->overflow : CV_ERROR;
    for (unsigned lane = 0; m && lane < CV_LANES; lane++)
        if (cv_ring_of(run, mailbox, m, lane, &r)) waiting += mb_waiting(&r);
    PyObject *histogram = PyList_New(0);
    for (unsigned i = 0; histogram && i < CV_HISTOGRAM; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(at_peek(&c->histogram[i]));
        if (!number || PyList_Append(histogram, number) < 0) Py_CLEAR(histogram);
        Py_XDECREF(number);
    }
    if (!histogram) return NULL;
    return Py_BuildValue("IIKIKKKKKKLLKNKK", overflow > CV_LATEST ? CV_ERROR : overflow,
                         m ? m->capacity[CV_LANE_NORMAL] : 0, waiting, m ? cv_hand_refs(m, refs) : 0,
                         at_peek(&c->handled), at_peek(&c->sent), at_peek(&c->redelivered), at_peek(&c->dropped),
                         at_peek(&c->garbage), at_peek(&c->busy_since_ns), mailbox_or_none(run, at_peek(&c->asking)),
                         mailbox_or_none(run, at_peek(&c->wants_room_in)),
                         m ? at_load(&m->readers) & ~0ull >> (64 - run->slots) : (uint64_t)0,
                         histogram, at_peek(&c->bytes_in), at_peek(&c->bytes_out));
}

/* in_hand(mailbox) -> [(token, reader, deliveries, header, type, sender, payload_len)] */
static PyObject *port_in_hand_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 1, "in_hand") || !as_u32(args[0], "mailbox", &mailbox)) return NULL;
    cv_run *run = &self->port.run;
    cv_mailbox *m = mailbox_at(self, mailbox);
    if (!m && PyErr_Occurred()) return NULL;
    PyObject *list = PyList_New(0);
    for (unsigned e = 0; m && list && e < CV_HAND; e++) {
        uint64_t meta = at_load(&m->hand[e].meta), word = at_load(&m->hand[e].ref);
        mb_message message;
        unsigned lane = (unsigned)(word >> 40) & 3u;
        if (cv_meta_state(meta) != CV_HAND_RUNNING || lane >= CV_LANES ||
            !mb_read(run, mailbox, lane, cv_meta_position(meta), cv_word_ref(word), &message))
            continue;
        PyObject *type = type_of(self, message.body, message.header.type_len);
        PyObject *sender = name_of(self, message.header.sender);
        PyObject *tuple = type && sender ? Py_BuildValue("IIIy#OOI", e, cv_meta_reader(meta), cv_meta_deliveries(meta),
                                                         &message.header, (Py_ssize_t)sizeof message.header, type, sender,
                                                         message.header.payload_len)
                                         : NULL;
        Py_XDECREF(type);
        Py_XDECREF(sender);
        if (!tuple || PyList_Append(list, tuple) < 0) Py_CLEAR(list);
        Py_XDECREF(tuple);
    }
    return list;
}

/* memory() -> (bytes used by chunks, bytes the kernel gave, limit, errno of the last refusal) */
static PyObject *port_memory_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    if (!is_open(self)) return NULL;
    cv_arena *a = &self->port.arena;
    return Py_BuildValue("KKKi", a->used, a->backed, a->limit, a->last_errno);
}

/* trim(keep_bytes) -> bytes given back to the kernel */
static PyObject *port_trim_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint64_t keep;
    if (!is_open(self) || !count_is(n, 1, 1, "trim") || !as_u64(args[0], &keep)) return NULL;
    cv_ledger_look_all(&self->port.ledger);
    return PyLong_FromUnsignedLongLong(cv_arena_trim(&self->port.arena, keep));
}

/* --- host ------------------------------------------------------------------------------------------------------------ */

/* add_mailbox(name, control, priority, normal, overflow, replicas, first_lap) -> index; OSError */
static PyObject *port_add_mailbox_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t capacity[CV_LANES], overflow, replicas;
    uint64_t first_lap;
    Py_ssize_t size;
    if (!is_open(self) || !count_is(n, 7, 7, "add_mailbox")) return NULL;
    const char *name = PyUnicode_AsUTF8AndSize(args[0], &size);
    if (!name || !as_u32(args[1], "control", &capacity[0]) || !as_u32(args[2], "priority", &capacity[1]) ||
        !as_u32(args[3], "capacity", &capacity[2]) || !as_u32(args[4], "overflow", &overflow) ||
        !as_u32(args[5], "replicas", &replicas) || !as_u64(args[6], &first_lap))
        return NULL;
    int64_t index = cv_directory_add(&self->port.run, self->mail_fd, name, (size_t)size, capacity, overflow, replicas,
                                     first_lap);
    if (index >= 0) return PyLong_FromLongLong(index);
    errno = (int)-index;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* set_readers(mailbox, reader bits, dead bits) */
static PyObject *port_set_readers_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    uint64_t readers, dead;
    if (!is_open(self) || !count_is(n, 3, 3, "set_readers") || !as_u32(args[0], "mailbox", &mailbox) ||
        !as_u64(args[1], &readers) || !as_u64(args[2], &dead))
        return NULL;
    cv_set_readers(&self->port.run, mailbox, readers, dead);
    Py_RETURN_NONE;
}

/* close_lanes(mailbox) -> bool: all three end in a MARK; False: take one message and call again */
static PyObject *port_close_lanes_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 1, "close_lanes") || !as_u32(args[0], "mailbox", &mailbox)) return NULL;
    if (!mailbox_at(self, mailbox) && PyErr_Occurred()) return NULL;
    return PyBool_FromLong(cv_close(&self->port.run, mailbox));
}

/* set_slot(slot, incarnation, state, pid) */
static PyObject *port_set_slot_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t slot, state;
    uint64_t incarnation, pid;
    if (!is_open(self) || !count_is(n, 4, 4, "set_slot") || !as_u32(args[0], "slot", &slot) ||
        !as_u64(args[1], &incarnation) || !as_u32(args[2], "state", &state) || !as_u64(args[3], &pid))
        return NULL;
    if (slot >= self->port.run.slots) return PyErr_Format(PyExc_IndexError, "no slot %u", slot);
    cv_slot *s = cv_slot_at(&self->port.run, slot);
    at_store(&s->incarnation, incarnation);
    at_store(&s->pid, pid);
    at_store(&s->state, state);
    Py_RETURN_NONE;
}
/* slot(slot) -> (incarnation, state, pid, parked, missed wake-ups) */
static PyObject *port_slot_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t slot;
    if (!is_open(self) || !count_is(n, 1, 1, "slot") || !as_u32(args[0], "slot", &slot)) return NULL;
    if (slot >= self->port.run.slots) return PyErr_Format(PyExc_IndexError, "no slot %u", slot);
    cv_slot *s = cv_slot_at(&self->port.run, slot);
    return Py_BuildValue("KKKNK", at_load(&s->incarnation), at_load(&s->state), at_load(&s->pid),
                         PyBool_FromLong(at_load(&s->park_seq) & 1), at_load(&s->missed));
}

/* recover(slot) -> slots repaired; wakes everybody */
static PyObject *port_recover_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t slot;
    if (!is_open(self) || !count_is(n, 1, 1, "recover") || !as_u32(args[0], "slot", &slot)) return NULL;
    if (slot >= self->port.run.slots) return PyErr_Format(PyExc_IndexError, "no slot %u", slot);
    unsigned repaired = cv_slot_recover(&self->port.run, slot);
    cv_ring_all(&self->port.run);
    return PyLong_FromUnsignedLong(repaired);
}
static PyObject *port_ring_all_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    if (!is_open(self)) return NULL;
    cv_ring_all(&self->port.run);
    Py_RETURN_NONE;
}
static PyObject *port_safety_poll_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    return is_open(self) ? PyLong_FromUnsignedLong(cv_safety_poll(&self->port.run)) : NULL;
}

/* --- life ------------------------------------------------------------------------------------------------------------ */

static void unmap(cv_run *run) {
    if (run->directory) munmap(run->directory, run->directory_size);
    if (run->cells) munmap(run->cells, run->cells_size);
    if (run->mail) munmap(run->mail, run->mail_size);
    for (unsigned i = 0; i < CV_SLOTS_MAX; i++)
        if (run->arena[i]) munmap(run->arena[i], run->arena_size[i]);
    memset(run, 0, sizeof *run);
}

static void leave(PortObject *self) {
    if (self->views)
        for (uint32_t i = 0; i < self->port.run.mailboxes; i++) Py_CLEAR(self->views[i].name);
    for (unsigned i = 0; i < TYPE_CACHE; i++) Py_CLEAR(self->type_cache[i]);
    Py_CLEAR(self->pending);
    Py_CLEAR(self->wake);
    if (!self->open) return;
    self->open = false;
    cv_ledger_free_all(&self->port.ledger);
    cv_arena_free_all(&self->port.arena);
    free(self->views);
    self->views = NULL;
    unmap(&self->port.run);
}

static PyObject *port_close_py(PyObject *object, PyObject *unused) {
    (void)unused;
    if (((PortObject *)object)->spinning) { /* the mappings are being read without the GIL */
        PyErr_SetString(PyExc_RuntimeError, "close() was called while another thread is in poll(); close on the loop's thread.");
        return NULL;
    }
    leave((PortObject *)object);
    Py_RETURN_NONE;
}

/* detach(): in a forked child. The mappings are gone there (MADV_DONTFORK), so nothing may be touched or unmapped. */
static PyObject *port_detach_py(PyObject *object, PyObject *unused) {
    (void)unused;
    ((PortObject *)object)->open = false;
    Py_RETURN_NONE;
}

static void port_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    leave((PortObject *)object);
    Py_CLEAR(((PortObject *)object)->closed_error);
    Py_CLEAR(((PortObject *)object)->done);
    Py_CLEAR(((PortObject *)object)->set_result);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

/* Map one segment and check its header; NULL with an exception set. */
static uint8_t *map_segment(int fd, bool writable, bool keep_in_fork, uint32_t kind, const uint8_t *run_id,
                            uint64_t *size) {
    struct stat st;
    if (fstat(fd, &st) < 0) return (uint8_t *)PyErr_SetFromErrno(PyExc_OSError);
    *size = (uint64_t)st.st_size;
    if (*size < CV_PAGE) {
        PyErr_SetString(PyExc_ValueError, "segment refused: it is smaller than a header");
        return NULL;
    }
    uint8_t *at = mmap(NULL, *size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return (uint8_t *)PyErr_SetFromErrno(PyExc_OSError);
    if (!keep_in_fork) madvise(at, *size, MADV_DONTFORK);
    madvise(at, *size, MADV_DONTDUMP);
    const char *why = cv_segment_refuse(at, *size, kind, run_id);
    if (why) {
        munmap(at, *size);
        PyErr_Format(PyExc_ValueError, "segment refused: %s", why);
        return NULL;
    }
    return at;
}

static bool fill_fds(PyObject *sequence, int *fds, Py_ssize_t want) {
    if (PySequence_Size(sequence) != want) {
        PyErr_Format(PyExc_ValueError, "expected %zd descriptors, got %zd", want, PySequence_Size(sequence));
        return false;
    }
    for (Py_ssize_t i = 0; i < want; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        long fd = item ? PyLong_AsLong(item) : -1;
        Py_XDECREF(item);
        if (fd == -1 && PyErr_Occurred()) return false;
        fds[i] = (int)fd;
    }
    return true;
}

/* Port(directory_fd, cells_fd, mail_fd, arena_fds, door_fds, slot, incarnation) */
static PyObject *port_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    int directory_fd, cells_fd, mail_fd, arenas[CV_SLOTS_MAX];
    unsigned slot;
    unsigned long long incarnation;
    PyObject *arena_fds, *door_fds;
    if ((kwargs && PyDict_Size(kwargs)) || !PyArg_ParseTuple(args, "iiiOOIK", &directory_fd, &cells_fd, &mail_fd,
                                                            &arena_fds, &door_fds, &slot, &incarnation))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "Port takes positional arguments");
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PortObject *self = (PortObject *)allocate(type, 0);
    if (!self) return NULL;
    cv_run *run = &self->port.run;
    PyObject *errors = PyImport_ImportModule("civitas_shm.errors");
    self->closed_error = errors ? PyObject_GetAttrString(errors, "TransportClosed") : NULL;
    Py_XDECREF(errors);
    self->done = PyUnicode_InternFromString("done");
    self->set_result = PyUnicode_InternFromString("set_result");
    if (!self->closed_error || !self->done || !self->set_result) goto fail;
    if (!(run->directory = map_segment(directory_fd, true, false, CV_KIND_DIRECTORY, NULL, &run->directory_size))) goto fail;
    cv_segment head;
    memcpy(&head, run->directory, sizeof head);
    run->slots = head.slots;
    run->mailboxes = head.mailboxes;
    run->me = slot;
    run->incarnation = incarnation;
    if (slot >= head.slots) {
        PyErr_Format(PyExc_ValueError, "slot %u of %u", slot, head.slots);
        goto fail;
    }
    if (run->directory_size != cv_directory_size(head.slots, head.mailboxes)) {
        PyErr_SetString(PyExc_ValueError, "segment refused: its size does not fit its counts");
        goto fail;
    }
    if (!fill_fds(arena_fds, arenas, head.slots) || !fill_fds(door_fds, run->door, head.slots)) goto fail;
    if (!(run->cells = map_segment(cells_fd, true, false, CV_KIND_CELLS, head.run_id, &run->cells_size))) goto fail;
    if (!(run->mail = map_segment(mail_fd, true, false, CV_KIND_MAIL, head.run_id, &run->mail_size))) goto fail;
    for (unsigned i = 0; i < head.slots; i++)
        if (!(run->arena[i] = map_segment(arenas[i], i == slot, i != slot, CV_KIND_ARENA, head.run_id, &run->arena_size[i])))
            goto fail;
    if (run->cells_size < cv_cells_size(head.mailboxes)) {
        PyErr_SetString(PyExc_ValueError, "segment refused: the cells are too few");
        goto fail;
    }
    memcpy(&run->seed, head.run_id, 8);
    run->seed = cv_bytes_mix(run->seed, head.run_id, 2);
    self->mail_fd = mail_fd;
    self->arena_fd = arenas[slot];
    self->port.random = run->seed ^ cv_now_ns(CLOCK_REALTIME) ^ (uint64_t)getpid() << 40 ^ incarnation << 20 ^ slot;
    self->views = calloc(head.mailboxes, sizeof *self->views);
    self->open = true;
    if (!self->views || port_attach(&self->port, self->arena_fd)) {
        PyErr_NoMemory();
        goto fail;
    }
    return (PyObject *)self;
fail:
    if (!self->open) unmap(run);
    Py_DECREF(self);
    return NULL;
}

#define FAST(name, function) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL}
static PyMethodDef port_methods[] = {
    FAST("post", port_post_py),           FAST("post_ask", port_ask_py),
    FAST("post_reply", port_reply_py),    FAST("take", port_take_py),
    FAST("release", port_release_py),     FAST("listen", port_listen_py),
    FAST("poll", port_poll_py),           FAST("want_room", port_want_room_py),
    FAST("bind", port_bind_py),
    FAST("note", port_note_py),           FAST("commit_state", port_commit_py),
    FAST("stored_state", port_stored_py), FAST("record", port_record_py),
    FAST("stats", port_stats_py),         FAST("in_hand", port_in_hand_py),
    FAST("trim", port_trim_py),           FAST("add_mailbox", port_add_mailbox_py),
    FAST("set_readers", port_set_readers_py), FAST("close_lanes", port_close_lanes_py),
    FAST("set_slot", port_set_slot_py),   FAST("slot", port_slot_py),
    FAST("recover", port_recover_py),
    {"unpark", port_unpark_py, METH_NOARGS, NULL},
    {"records", port_records_py, METH_NOARGS, NULL},
    {"memory", port_memory_py, METH_NOARGS, NULL},
    {"ring_all", port_ring_all_py, METH_NOARGS, NULL},
    {"safety_poll", port_safety_poll_py, METH_NOARGS, NULL},
    {"close", port_close_py, METH_NOARGS, NULL},
    {"detach", port_detach_py, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot port_slots[] = {
    {Py_tp_new, port_new}, {Py_tp_dealloc, port_dealloc}, {Py_tp_methods, port_methods}, {0, NULL}};
static PyType_Spec port_spec = {.name = "civitas_shm_transports.shm._shm.Port",
                                .basicsize = sizeof(PortObject),
                                .flags = Py_TPFLAGS_DEFAULT,
                                .slots = port_slots};

/* sizes(slots, mailboxes) -> (directory bytes, cells bytes) */
static PyObject *module_sizes(PyObject *module, PyObject *args) {
    (void)module;
    unsigned slots, mailboxes;
    if (!PyArg_ParseTuple(args, "II", &slots, &mailboxes)) return NULL;
    return Py_BuildValue("KK", cv_directory_size(slots, mailboxes), cv_cells_size(mailboxes));
}
/* mailbox_size(control, priority, normal) -> bytes */
static PyObject *module_mailbox_size(PyObject *module, PyObject *args) {
    (void)module;
    uint32_t capacity[CV_LANES];
    if (!PyArg_ParseTuple(args, "III", &capacity[0], &capacity[1], &capacity[2])) return NULL;
    return PyLong_FromUnsignedLongLong(cv_mailbox_size(capacity));
}
/* format(fd, kind, run_id, slots, mailboxes, owner, back_bytes): write a header into a fresh segment of its final size */
static PyObject *module_format(PyObject *module, PyObject *args) {
    (void)module;
    int fd;
    unsigned kind, slots, mailboxes, owner;
    unsigned long long back;
    const char *run_id;
    Py_ssize_t id_size;
    struct stat st;
    if (!PyArg_ParseTuple(args, "iIy#IIIK", &fd, &kind, &run_id, &id_size, &slots, &mailboxes, &owner, &back)) return NULL;
    if (id_size != 16) return PyErr_Format(PyExc_ValueError, "a run id is 16 bytes, not %zd", id_size);
    if (fstat(fd, &st) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    int rc;
    do { rc = fallocate(fd, 0, 0, (off_t)back) ? errno : 0; } while (rc == EINTR);
    if (rc) {
        errno = rc;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    uint8_t *at = mmap(NULL, back, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return PyErr_SetFromErrno(PyExc_OSError);
    cv_segment_format(at, kind, (const uint8_t *)run_id, (uint64_t)st.st_size, slots, mailboxes, owner);
    if (kind == CV_KIND_DIRECTORY) at_poke((at_u64 *)(at + CV_DIR_MAIL_END), CV_PAGE);
    munmap(at, back);
    Py_RETURN_NONE;
}
/* refuse(fd, kind) -> None or the reason; (slots, mailboxes, run_id) when it is sound */
static PyObject *module_inspect(PyObject *module, PyObject *args) {
    (void)module;
    int fd;
    unsigned kind;
    struct stat st;
    if (!PyArg_ParseTuple(args, "iI", &fd, &kind)) return NULL;
    if (fstat(fd, &st) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    if ((uint64_t)st.st_size < CV_PAGE || st.st_blocks == 0)
        return PyUnicode_FromString("it is smaller than a header");
    uint8_t *at = mmap(NULL, CV_PAGE, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return PyErr_SetFromErrno(PyExc_OSError);
    cv_segment head;
    memcpy(&head, at, sizeof head);
    const char *why = cv_segment_refuse(at, (uint64_t)st.st_size, kind, NULL);
    munmap(at, CV_PAGE);
    if (why) return PyUnicode_FromString(why);
    return Py_BuildValue("IIy#", head.slots, head.mailboxes, head.run_id, (Py_ssize_t)16);
}
/* eventfd() -> fd: non-blocking, close-on-exec */
static PyObject *module_eventfd(PyObject *module, PyObject *unused) {
    (void)module; (void)unused;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return fd < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(fd);
}

static PyMethodDef module_methods[] = {{"sizes", module_sizes, METH_VARARGS, NULL},
                                       {"mailbox_size", module_mailbox_size, METH_VARARGS, NULL},
                                       {"format", module_format, METH_VARARGS, NULL},
                                       {"inspect", module_inspect, METH_VARARGS, NULL},
                                       {"eventfd", module_eventfd, METH_NOARGS, NULL},
                                       {NULL, NULL, 0, NULL}};

static int module_exec(PyObject *module) {
    PyObject *type = PyType_FromModuleAndSpec(module, &port_spec, NULL);
    if (!type || PyModule_AddObjectRef(module, "Port", type) < 0) {
        Py_XDECREF(type);
        return -1;
    }
    Py_DECREF(type);
    return PyModule_AddIntConstant(module, "LAYOUT_VERSION", CV_LAYOUT_VERSION) ||
           PyModule_AddIntConstant(module, "SLOTS_MAX", CV_SLOTS_MAX) ||
           PyModule_AddIntConstant(module, "MAILBOXES_MAX", CV_MAILBOXES_MAX) ||
           PyModule_AddIntConstant(module, "REPLY_PLACES", PORT_REPLY_PLACES) ||
           PyModule_AddIntConstant(module, "CAPACITY_MAX", (1 << CV_RING_MAX_LOG2) - 1) ||
           PyModule_AddIntConstant(module, "NAME_MAX", CV_NAME_MAX) ||
           PyModule_AddIntConstant(module, "ARENA_MAX", (long)(CV_ARENA_EXTENTS_MAX * CV_EXTENT));
}
static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};
static PyModuleDef module_def = {PyModuleDef_HEAD_INIT, .m_name = "_shm", .m_methods = module_methods,
                                 .m_slots = module_slots};
PyMODINIT_FUNC PyInit__shm(void) { return PyModuleDef_Init(&module_def); }
