/* An agent's state, committed together with the message in hand. */
#include "_shm.h"

#define PORT_SAME_MESSAGE (-2) /* a token: of the message that the stored state is the effect of */

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
    mb_message stored;
    if (token == PORT_SAME_MESSAGE && port_state(&self->port, mailbox, &stored)) {
        cause = stored.header;
        with_cause = true;
    }
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

/* state_elsewhere(mailbox, id) */
PyObject *port_state_elsewhere_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    char *id;
    Py_ssize_t size;
    if (!is_open(self) || !count_is(n, 2, 2, "state_elsewhere") || !as_mailbox(self, args[0], &mailbox)) return NULL;
    if (PyBytes_AsStringAndSize(args[1], &id, &size) < 0) return NULL;
    if (size != 0 && size != 16) return PyErr_Format(PyExc_ValueError, "an id has 16 bytes, not %zd", size);
    cv_effect *effect = self->port.effect[mailbox];
    if (effect) cv_effect_saved(effect, size ? cv_id_low((const uint8_t *)id) : 0);
    Py_RETURN_NONE;
}
