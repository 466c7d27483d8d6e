/* What only the host does: mailboxes, readers, closing, slots, repair after a death. */
#include "_shm.h"

/* add_mailbox(name, control, priority, normal, overflow, replicas, first_lap) -> index; OSError */
PyObject *port_add_mailbox_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
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

/* retire(mailbox) -> bool: whether the closed mailbox was empty and is kept for another agent now */
PyObject *port_retire_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 1, "retire") || !as_mailbox(self, args[0], &mailbox)) return NULL;
    if (!mailbox_at(self, mailbox)) return PyErr_Occurred() ? NULL : PyBool_FromLong(false);
    return PyBool_FromLong(cv_retire(&self->port.run, mailbox));
}

/* reopen(index, name, control, priority, normal, overflow, replicas) -> handle; OSError: its rings are of another size */
PyObject *port_reopen_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t index, capacity[CV_LANES], overflow, replicas;
    Py_ssize_t size;
    if (!is_open(self) || !count_is(n, 7, 7, "reopen") || !as_u32(args[0], "index", &index)) return NULL;
    const char *name = PyUnicode_AsUTF8AndSize(args[1], &size);
    if (!name || !as_u32(args[2], "control", &capacity[0]) || !as_u32(args[3], "priority", &capacity[1]) ||
        !as_u32(args[4], "capacity", &capacity[2]) || !as_u32(args[5], "overflow", &overflow) ||
        !as_u32(args[6], "replicas", &replicas))
        return NULL;
    int64_t handle = cv_reopen(&self->port.run, index, name, (size_t)size, capacity, overflow, replicas);
    if (handle >= 0) return PyLong_FromLongLong(handle);
    errno = (int)-handle;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* set_readers(mailbox, slots that read, slots that are dead) */
PyObject *port_set_readers_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    cv_set readers, dead;
    if (!is_open(self) || !count_is(n, 3, 3, "set_readers") || !as_mailbox(self, args[0], &mailbox) ||
        !as_slots(self, args[1], &readers) || !as_slots(self, args[2], &dead))
        return NULL;
    cv_set_readers(&self->port.run, mailbox, readers, dead);
    Py_RETURN_NONE;
}

/* close_lanes(mailbox) -> bool: all three end in a MARK; False: take one message and call again */
PyObject *port_close_lanes_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 1, "close_lanes") || !as_mailbox(self, args[0], &mailbox)) return NULL;
    if (!mailbox_at(self, mailbox) && PyErr_Occurred()) return NULL;
    if (mailbox == NO_MAILBOX) Py_RETURN_TRUE; /* under that handle nothing can be committed any more */
    return PyBool_FromLong(cv_close(&self->port.run, mailbox));
}

/* begin_life(mailbox, incarnation) -> bool: whether it is above all before */
PyObject *port_begin_life_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    uint64_t incarnation;
    if (!is_open(self) || !count_is(n, 2, 2, "begin_life") || !as_mailbox(self, args[0], &mailbox) ||
        !as_u64(args[1], &incarnation))
        return NULL;
    if (mailbox >= cv_records(&self->port.run)) return outcome(PORT_UNKNOWN);
    return PyBool_FromLong(cv_begin_life(&self->port.run, mailbox, incarnation));
}
/* last_incarnation() -> of any agent of the run; 0: none was ever started */
PyObject *port_last_incarnation_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    return is_open(self) ? PyLong_FromUnsignedLongLong(cv_last_incarnation(&self->port.run)) : NULL;
}

/* set_slot(slot, incarnation, state, pid) */
PyObject *port_set_slot_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
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
PyObject *port_slot_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t slot;
    if (!is_open(self) || !count_is(n, 1, 1, "slot") || !as_u32(args[0], "slot", &slot)) return NULL;
    if (slot >= self->port.run.slots) return PyErr_Format(PyExc_IndexError, "no slot %u", slot);
    cv_slot *s = cv_slot_at(&self->port.run, slot);
    return Py_BuildValue("KKKNK", at_load(&s->incarnation), at_load(&s->state), at_load(&s->pid),
                         PyBool_FromLong(at_load(&s->park_seq) & 1), at_load(&s->missed));
}

/* recover(slot) -> slots repaired; wakes everybody */
PyObject *port_recover_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t slot;
    if (!is_open(self) || !count_is(n, 1, 1, "recover") || !as_u32(args[0], "slot", &slot)) return NULL;
    if (slot >= self->port.run.slots) return PyErr_Format(PyExc_IndexError, "no slot %u", slot);
    unsigned repaired = cv_slot_recover(&self->port.run, slot);
    cv_ring_all(&self->port.run);
    return PyLong_FromUnsignedLong(repaired);
}
PyObject *port_ring_all_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    if (!is_open(self)) return NULL;
    cv_ring_all(&self->port.run);
    Py_RETURN_NONE;
}
PyObject *port_safety_poll_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    return is_open(self) ? PyLong_FromUnsignedLong(cv_safety_poll(&self->port.run)) : NULL;
}
