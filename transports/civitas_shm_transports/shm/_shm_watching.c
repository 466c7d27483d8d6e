/* Who waits for whom, and does a loop turn: what the host's watch reads, and what processes note for it. */
#include "_shm.h"

/* note_wait(agent, target, kind, id, since_ns, seen_ns, type): what its handler waits for; kind 0 an ask, 1 room */
PyObject *port_note_wait_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t agent, target, kind;
    cv_wait wait = {0};
    Py_ssize_t size;
    if (!is_open(self) || !count_is(n, 7, 7, "note_wait") || !as_mailbox(self, args[0], &agent) ||
        !as_u32(args[1], "target", &target) || !as_u32(args[2], "kind", &kind) || !as_u64(args[3], &wait.id) ||
        !as_u64(args[4], &wait.since_ns) || !as_u64(args[5], &wait.seen_ns))
        return NULL;
    const char *type = PyUnicode_AsUTF8AndSize(args[6], &size);
    if (!type) return NULL;
    if (agent == NO_MAILBOX) Py_RETURN_NONE;
    if (agent >= cv_records(&self->port.run)) return outcome(PORT_UNKNOWN);
    wait.on = target | (uint64_t)(kind & 1) << 32;
    memcpy(wait.type, type, size < (Py_ssize_t)CV_WAIT_TYPE ? (size_t)size : CV_WAIT_TYPE - 1);
    cv_wait_note(&self->port.run, agent, &wait);
    Py_RETURN_NONE;
}

/* clear_wait(agent): it waits no more */
PyObject *port_clear_wait_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t agent;
    if (!is_open(self) || !count_is(n, 1, 1, "clear_wait") || !as_mailbox(self, args[0], &agent)) return NULL;
    if (agent == NO_MAILBOX) Py_RETURN_NONE;
    if (agent >= cv_records(&self->port.run)) return outcome(PORT_UNKNOWN);
    cv_wait_clear(&self->port.run, agent);
    Py_RETURN_NONE;
}

/* waits() -> [(agent, target, kind, id, since_ns, seen_ns, type)] of all agents that wait */
PyObject *port_waits_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    if (!is_open(self)) return NULL;
    cv_run *run = &self->port.run;
    PyObject *list = PyList_New(0);
    for (uint32_t agent = run->slots; list && agent < cv_records(run); agent++) {
        cv_wait wait;
        if (!cv_wait_read(run, agent, &wait)) continue;
        PyObject *type = PyUnicode_DecodeUTF8(wait.type, (Py_ssize_t)strlen(wait.type), "ignore");
        PyObject *tuple = type ? Py_BuildValue("IIIKKKN", cv_handle(run, agent), cv_wait_target(&wait), cv_wait_kind(&wait), wait.id,
                                               wait.since_ns, wait.seen_ns, type)
                               : NULL;
        if (!tuple || PyList_Append(list, tuple) < 0) Py_CLEAR(list);
        Py_XDECREF(tuple);
    }
    return list;
}

/* probe(slot): ask whether its loop turns; probe_open(slot) -> bool: it has not answered yet */
PyObject *port_probe_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t slot;
    if (!is_open(self) || !count_is(n, 1, 1, "probe") || !as_u32(args[0], "slot", &slot)) return NULL;
    if (slot >= self->port.run.slots) return PyErr_Format(PyExc_IndexError, "no slot %u", slot);
    cv_probe(&self->port.run, slot);
    Py_RETURN_NONE;
}
PyObject *port_probe_open_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t slot;
    if (!is_open(self) || !count_is(n, 1, 1, "probe_open") || !as_u32(args[0], "slot", &slot)) return NULL;
    if (slot >= self->port.run.slots) return PyErr_Format(PyExc_IndexError, "no slot %u", slot);
    return PyBool_FromLong(cv_probe_open(&self->port.run, slot));
}

/* held() -> [(mailbox, bytes of this process's arena that its messages there take)] */
PyObject *port_held_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    if (!is_open(self)) return NULL;
    cv_ledger_look_all(&self->port.ledger);
    PyObject *list = PyList_New(0);
    for (uint32_t mailbox = 0; list && mailbox < cv_records(&self->port.run); mailbox++) {
        const cv_account *account = self->port.ledger.account[mailbox];
        if (!account || !account->bytes) continue;
        PyObject *tuple = Py_BuildValue("IK", cv_handle(&self->port.run, mailbox), account->bytes);
        if (!tuple || PyList_Append(list, tuple) < 0) Py_CLEAR(list);
        Py_XDECREF(tuple);
    }
    return list;
}
