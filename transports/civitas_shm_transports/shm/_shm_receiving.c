/* Receiving: take, release, listen; poll with the replies that it finds; parking and waiting for room. */
#include "_shm.h"

#define REPLIES_AT_ONCE 256
#define READY_AT_ONCE 1024

/* (number, header, type, sender, payload, last); steals `first` and `last`. */
static PyObject *message_tuple(PortObject *self, PyObject *first, const mb_message *m, PyObject *last) {
    PyObject *tuple = PyTuple_New(6);
    PyObject *header = PyBytes_FromStringAndSize((const char *)&m->header, sizeof m->header);
    PyObject *type, *sender;
    type_and_sender(self, m, &type, &sender);
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

/* --- messages -------------------------------------------------------------------------------------------------------- */

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
    port_end(&self->port, mailbox, entry, now_ns);
}

/* Whether a message has outlived its ttl. */
static bool is_expired(const mb_message *message, uint64_t now_ns) {
    return message->header.flags & CV_FLAG_MORTAL && now_ns > message->header.deadline_ns;
}

/* take(mailbox, done=-1) -> (token, header, type, sender, payload, deliveries) | None. Negative deliveries: it waits in hand
 * until `begin`. 0 deliveries: it has outlived its ttl, and no handler may have it. */
PyObject *port_take_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 2, "take") || !as_mailbox(self, args[0], &mailbox)) return NULL;
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
    if (!now) now = cv_now_ns(CLOCK_MONOTONIC);
    if (is_expired(&message, now)) {
        port_count(m, &cv_cell_at(&port->run, mailbox)->dropped, 1);
        return message_tuple(self, PyLong_FromUnsignedLong(message.entry), &message, PyLong_FromLong(0));
    }
    if (!message.alone) port_begin(port, mailbox, &message, now);
    return message_tuple(self, PyLong_FromUnsignedLong(message.entry), &message,
                         PyLong_FromLong(message.alone ? -(long)message.deliveries : (long)message.deliveries));
}

PyObject *port_release_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox, token;
    if (!is_open(self) || !count_is(n, 2, 2, "release") || !as_mailbox(self, args[0], &mailbox) ||
        !as_u32(args[1], "token", &token))
        return NULL;
    cv_mailbox *m = cv_mailbox_at(&self->port.run, mailbox);
    if (m) release(self, mailbox, m, token, cv_now_ns(CLOCK_MONOTONIC));
    Py_RETURN_NONE;
}

/* listen(mailbox, on): from now on this process reads it; what a dead predecessor had in hand comes first. */
PyObject *port_listen_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 2, 2, "listen") || !as_mailbox(self, args[0], &mailbox)) return NULL;
    int on = PyObject_IsTrue(args[1]);
    cv_run *run = &self->port.run;
    cv_mailbox *m = mailbox_at(self, mailbox);
    if (on < 0 || (!m && PyErr_Occurred())) return NULL;
    if (!m) Py_RETURN_NONE;
    self->views[mailbox].listens = on;
    self->views[mailbox].handle = cv_handle(run, mailbox);
    port_remember(&self->port, mailbox, m, on);
    if (!on) {
        cv_set_leave(&m->listening, run->me); /* SYNC POINT "left in hand" */
        Py_RETURN_NONE;
    }
    self->views[mailbox].taken = 0; /* a restarted agent gets its predecessor's, too */
    inherit(self, mailbox, m);
    at_poke(&cv_cell_at(run, mailbox)->busy_since_ns, 0);
    at_poke(&cv_cell_at(run, mailbox)->asking, 0);
    cv_wait_clear(run, mailbox);
    cv_set_join(&m->listening, run->me);
    Py_RETURN_NONE;
}


/* --- replies and readiness ------------------------------------------------------------------------------------------ */

/* Give a reply to the future that waits for it, if one still does. What goes wrong here (a loop that is closed) is told
 * and concerns that future alone: an exception would lose what else was announced. */
static void resolve(PortObject *self, PyObject *reply) {
    PyObject *key = PyTuple_GetItem(reply, 0);
    PyObject *future = self->pending ? PyDict_GetItemWithError(self->pending, key) : NULL;
    if (!future) { /* forgotten: late, and dropped; but who opens a stream waits for an answer */
        PyObject *none = self->stranger ? PyObject_CallFunctionObjArgs(self->stranger, reply, NULL) : NULL;
        if (PyErr_Occurred()) PyErr_WriteUnraisable(self->stranger);
        Py_XDECREF(none);
        return;
    }
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
    if (m) cv_notify_one(&port->run, mine, mine); /* more than one batch: come again */
    return true;
}

/* poll(spin_ns, may_park) -> (mailboxes, number of replies, alarm) | None: nothing was announced; and when may_park, this process
 * is asleep now: return to the loop, the doorbell will ring. */
PyObject *port_poll_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
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
    if (alarm) mb_told(run);
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
        PyObject *number = PyLong_FromUnsignedLong(self->views[ready[i]].handle);
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

/* bind(pending, wake, forgetful, stranger): the dict of futures by correlation; what to call when a parked process asks,
 * when a handler sends more than is remembered of it, and with a reply that nobody waits for. */
PyObject *port_bind_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    if (!is_open(self) || !count_is(n, 4, 4, "bind")) return NULL;
    if (!PyDict_Check(args[0])) return PyErr_Format(PyExc_TypeError, "pending must be a dict");
    Py_INCREF(args[0]);
    Py_INCREF(args[1]);
    Py_INCREF(args[2]);
    Py_INCREF(args[3]);
    Py_XDECREF(self->pending);
    Py_XDECREF(self->wake);
    Py_XDECREF(self->forgetful);
    Py_XDECREF(self->stranger);
    self->pending = args[0];
    self->wake = args[1];
    self->forgetful = args[2];
    self->stranger = args[3];
    Py_RETURN_NONE;
}

PyObject *port_unpark_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    if (!is_open(self)) return NULL;
    cv_unpark(&self->port.run);
    Py_RETURN_NONE;
}

/* want_room(mailbox) -> 1: there is room already, do not sleep; 0: this process will be told; -1: no memory, and nothing is
 * on its way that could give some back */
PyObject *port_want_room_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 1, "want_room") || !as_mailbox(self, args[0], &mailbox)) return NULL;
    if (!mailbox_at(self, mailbox) && PyErr_Occurred()) return NULL;
    if (mailbox == NO_MAILBOX) return PyLong_FromLong(PORT_ROOM_NOW); /* the next post is told that it is gone */
    return PyLong_FromLong(port_want_room(&self->port, mailbox));
}
