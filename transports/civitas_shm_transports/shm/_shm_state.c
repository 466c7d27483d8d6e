/* An agent's state, committed together with the message in hand. */
#include "_shm.h"

/* commit_state(mailbox, token, state) -> outcome */
PyObject *port_commit_state_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    char *bytes;
    Py_ssize_t size;
    if (!is_open(self) || !count_is(n, 3, 3, "commit_state") || !as_mailbox(self, args[0], &mailbox)) return NULL;
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
PyObject *port_stored_state_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 1, "stored_state") || !as_mailbox(self, args[0], &mailbox)) return NULL;
    mb_message state;
    if (!port_state(&self->port, mailbox, &state)) Py_RETURN_NONE;
    return Py_BuildValue("y#y#", state.body, (Py_ssize_t)state.header.payload_len, state.header.id,
                         (Py_ssize_t)sizeof state.header.id);
}
