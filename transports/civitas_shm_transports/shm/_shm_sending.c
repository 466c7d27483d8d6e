/* Sending: post, post_ask, post_reply. The protocol is native/port.h. */
#include "_shm.h"

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

#define FOREIGN_MAX 4096 /* bytes of type and name of a sender at another host, together */

/* A mailbox; or the name of an agent of another host, which goes behind the type. `place` lives as long as the post. */
static bool fill_sender(port_post *post, PyObject *sender, char place[FOREIGN_MAX]) {
    if (!PyUnicode_Check(sender)) return as_u32(sender, "sender", &post->sender);
    Py_ssize_t size;
    const char *name = PyUnicode_AsUTF8AndSize(sender, &size);
    if (!name) return false;
    if ((uint64_t)size > FOREIGN_MAX - 2 || post->type_len > FOREIGN_MAX - 2 - (uint64_t)size) {
        PyErr_Format(PyExc_ValueError, "type and name of a sender at another host have more than %d bytes", FOREIGN_MAX);
        return false;
    }
    memcpy(place, post->type, post->type_len);
    memcpy(place + post->type_len, name, (size_t)size);
    place[post->type_len + (uint64_t)size] = (char)(size & 0xff);
    place[post->type_len + (uint64_t)size + 1] = (char)(size >> 8);
    post->type = place;
    post->type_len += (uint64_t)size + 2;
    post->sender = UINT32_MAX; /* SENDER_PROGRAM: no cell counts it */
    post->flags |= CV_FLAG_FOREIGN;
    return true;
}

/* What comes from another host keeps the id that it had there, and whether it may have come before. */
static void keep_identity(port_post *post) {
    if (!(post->flags & CV_FLAG_FOREIGN) || !post->cause) return;
    post->id = (const uint64_t *)(const void *)post->cause->id;
    post->flags |= post->cause->flags & CV_FLAG_REPEATED;
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

/* A handler has sent more than is remembered of it: once for each agent. */
static void tell_forgetful(PortObject *self) {
    PyObject *mailbox = PyLong_FromUnsignedLong(self->port.forgetful - 1);
    self->port.forgetful = 0;
    PyObject *none = mailbox && self->forgetful ? PyObject_CallFunctionObjArgs(self->forgetful, mailbox, NULL) : NULL;
    if (PyErr_Occurred()) PyErr_WriteUnraisable(self->forgetful); /* the message is committed: no exception may deny it */
    Py_XDECREF(none);
    Py_XDECREF(mailbox);
}

/* post(mailbox, payload, type, sender, cause=None, lane=2, priority=0, expires_ns=0) -> outcome */
PyObject *port_post_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    port_post post = {0};
    cv_header cause;
    char name[FOREIGN_MAX];
    if (!is_open(self) || !count_is(n, 4, 8, "post") || !as_recipient(args[0], &post) ||
        !fill_post(&post, args[1], args[2]) || !fill_sender(&post, args[3], name) ||
        !fill_optional(&post, args, n, 4, &cause) || (n > 7 && !as_u64(args[7], &post.deadline_ns)))
        return NULL;
    if (post.deadline_ns) post.flags |= CV_FLAG_MORTAL;
    keep_identity(&post);
    cv_effect *handler = port_handler(&self->port, &post);
    int rc = handler ? port_send_once(&self->port, &post, handler) : port_send(&self->port, &post);
    if (self->port.forgetful) tell_forgetful(self);
    return outcome(rc);
}

/* post_ask(mailbox, payload, type, sender, future, deadline_ns, cause=None, lane=2, priority=0, seq=0) -> correlation, or
 * outcome < 0. The future is kept in `pending` until the reply has come or the ask is forgotten. */
PyObject *port_post_ask_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    port_post post = {.flags = CV_FLAG_ASK};
    cv_header cause;
    char name[FOREIGN_MAX];
    if (!is_open(self) || !count_is(n, 6, 10, "post_ask") || !as_recipient(args[0], &post) ||
        !fill_post(&post, args[1], args[2]) || !fill_sender(&post, args[3], name) ||
        !as_u64(args[5], &post.deadline_ns) || !fill_optional(&post, args, n, 6, &cause) || (n > 9 && !as_u32(args[9], "seq", &post.seq)))
        return NULL;
    if (!self->pending) return PyErr_Format(PyExc_RuntimeError, "post_ask before bind");
    keep_identity(&post);
    if (PyDict_Size(self->pending) >= (Py_ssize_t)PORT_REPLY_PLACES) return PyLong_FromLong(PORT_NO_MEMORY);
    cv_port *port = &self->port;
    post.correlation = cv_correlation(port->run.me, port->run.incarnation, ++port->asks);
    cv_cell *cell = port_cell(port, post.sender);
    if (cell) at_poke(&cell->asking, 1 + (uint64_t)(post.mailbox | post.reuse << CV_INDEX_BITS));
    PyObject *key = PyLong_FromUnsignedLongLong(post.correlation);
    if (!key || PyDict_SetItem(self->pending, key, args[4]) < 0) { /* before the post: then nothing can fail after it */
        Py_XDECREF(key);
        return NULL;
    }
    cv_effect *handler = port_handler(port, &post);
    int rc = handler ? port_ask_once(port, &post, handler) : port_send(port, &post);
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

/* post_reply(cause, payload, type, sender, failed=False, seq=0) -> bool: False, nobody waits any more. PayloadTooLarge,
 * SharedMemoryFull: somebody does, and gets nothing yet. */
PyObject *port_post_reply_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    port_post post = {0};
    cv_header cause;
    bool present;
    char name[FOREIGN_MAX];
    if (!is_open(self) || !count_is(n, 4, 6, "post_reply") || !as_header(args[0], &cause, &present) ||
        !fill_post(&post, args[1], args[2]) || !fill_sender(&post, args[3], name))
        return NULL;
    if (!present) Py_RETURN_FALSE;
    if (n > 4) {
        int failed = PyObject_IsTrue(args[4]);
        if (failed < 0) return NULL;
        if (failed) post.flags |= CV_FLAG_FAILED;
    }
    if (n > 5 && !as_u32(args[5], "seq", &post.seq)) return NULL;
    int rc = port_reply(&self->port, &cause, &post);
    /* Full of replies that nobody collected, of asks that were forgotten: dropped, and counted where they were to go. */
    if (rc == PORT_FULL) at_add(&cv_cell_at(&self->port.run, post.mailbox)->dropped, 1);
    if (rc == PORT_NO_MEMORY || rc == PORT_TOO_LARGE) return reply_refused(self, rc, post.payload_len);
    return PyBool_FromLong(rc == PORT_SENT);
}

/* new_correlation() -> one that no ask of this process has: for what others are to answer without having been asked. */
PyObject *port_new_correlation_py(PyObject *object, PyObject *unused) {
    PortObject *self = (PortObject *)object;
    (void)unused;
    if (!is_open(self)) return NULL;
    cv_port *port = &self->port;
    return PyLong_FromUnsignedLongLong(cv_correlation(port->run.me, port->run.incarnation, ++port->asks));
}
