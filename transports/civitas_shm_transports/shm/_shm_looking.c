/* Numbers, records and what is in hand, for those who look: no cost to the agents, out of date at once. What a Reader has
 * too writes nothing. */
#include "_shm.h"

PyObject *port_records_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    return is_open(self) ? PyLong_FromUnsignedLong(cv_records(&self->port.run)) : NULL;
}
/* find(name) -> mailbox, an open one if there is one; -1: there is none of that name */
PyObject *port_find_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    Py_ssize_t size;
    if (!is_open(self) || !count_is(n, 1, 1, "find")) return NULL;
    const char *name = PyUnicode_AsUTF8AndSize(args[0], &size);
    if (!name) return NULL;
    uint32_t handle = cv_find(&self->port.run, self->port.run.slots + 1, name, (size_t)size); /* behind reply lanes and notes */
    return PyLong_FromLongLong(handle == UINT32_MAX ? -1 : (long long)handle);
}

/* mailboxes(first, free=False) -> [mailbox] of the records from `first` on; `free`: those kept for other agents instead */
PyObject *port_mailboxes_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t first;
    if (!is_open(self) || !count_is(n, 1, 2, "mailboxes") || !as_u32(args[0], "first", &first)) return NULL;
    bool free = n > 1 && args[1] == Py_True;
    PyObject *list = PyList_New(0);
    for (uint32_t index = first; list && index < cv_records(&self->port.run); index++) {
        if (((at_load(&cv_record_at(&self->port.run, index)->word) & 0xff) == CV_AGENT_FREE) != free) continue;
        PyObject *number = PyLong_FromUnsignedLong(cv_handle(&self->port.run, index));
        if (!number || PyList_Append(list, number) < 0) Py_CLEAR(list);
        Py_XDECREF(number);
    }
    return list;
}

/* record(mailbox) -> (name, open); half closed, or with a damaged header, it is not open */
PyObject *port_record_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 1, "record") || !as_mailbox(self, args[0], &mailbox)) return NULL;
    if (mailbox == NO_MAILBOX) return Py_BuildValue("sO", "_gone", Py_False);
    if (mailbox >= cv_records(&self->port.run)) return outcome(PORT_UNKNOWN);
    cv_mailbox *m = cv_mailbox_at(&self->port.run, mailbox);
    PyObject *name = name_of(self, cv_handle(&self->port.run, mailbox));
    if (!name) return NULL;
    return Py_BuildValue("NN", name, PyBool_FromLong(m && !lk_is_closed(&self->port.run, m, mailbox)));
}

/* A cell's word of the form "1 + mailbox, 0 = none" as a mailbox or -1. */
static long long mailbox_or_none(const cv_run *run, uint64_t word) {
    return word - 1 < UINT32_MAX && cv_index((uint32_t)(word - 1)) < run->mailboxes ? (long long)(word - 1) : -1;
}

static uint64_t news_in_hand(cv_mailbox *m) {
    uint64_t news = 0;
    for (unsigned e = 0; e < CV_HAND; e++)
        news += cv_meta_state(at_load(&m->hand[e].meta)) == CV_HAND_RUNNING &&
                (at_load(&m->hand[e].ref) >> 40 & 3) == CV_LANE_CONTROL;
    return news;
}

/* stats(mailbox) -> (overflow, capacity, waiting, in_hand, handled, sent, redelivered, dropped, garbage, busy_since_ns, asking,
 * wants_room_in, slots that read, histogram list, bytes_in, bytes_out, replay_dropped, replay_diverged, not_remembered,
 * news: how many of those that wait or are in hand are the runtime's own, in the control lane; since when it is suspended) */
PyObject *port_stats_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 1, "stats") || !as_mailbox(self, args[0], &mailbox)) return NULL;
    cv_run *run = &self->port.run;
    cv_mailbox *m = mailbox_at(self, mailbox);
    if (!m && PyErr_Occurred()) return NULL;
    cv_cell nothing = {0}, *c = mailbox == NO_MAILBOX ? &nothing : cv_cell_at(run, mailbox);
    cv_ring r;
    uint64_t waiting = 0, refs[CV_HAND];
    unsigned overflow = m ? m->overflow : CV_ERROR;
    uint64_t news = m ? news_in_hand(m) : 0;
    for (unsigned lane = 0; m && lane < CV_LANES; lane++) {
        if (!cv_ring_of(run, mailbox, m, lane, &r)) continue;
        uint64_t there = lk_waiting(&r);
        waiting += there;
        if (lane == CV_LANE_CONTROL) news += there;
    }
    PyObject *histogram = PyList_New(0);
    for (unsigned i = 0; histogram && i < CV_HISTOGRAM; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(at_peek(&c->histogram[i]));
        if (!number || PyList_Append(histogram, number) < 0) Py_CLEAR(histogram);
        Py_XDECREF(number);
    }
    if (!histogram) return NULL;
    return Py_BuildValue("IIKIKKKKKKLLNNKKKKKKK", overflow > CV_LATEST ? CV_ERROR : overflow,
                         m ? m->capacity[CV_LANE_NORMAL] : 0, waiting, m ? cv_hand_refs(m, refs) : 0,
                         at_peek(&c->handled), at_peek(&c->sent), at_peek(&c->redelivered), at_peek(&c->dropped),
                         at_peek(&c->garbage), at_peek(&c->busy_since_ns), mailbox_or_none(run, at_peek(&c->asking)),
                         mailbox_or_none(run, at_peek(&c->wants_room_in)),
                         slots_of(self, m ? cv_set_load(&m->readers) : (cv_set){{0}}),
                         histogram, at_peek(&c->bytes_in), at_peek(&c->bytes_out),
                         at_peek(&c->replay_dropped), at_peek(&c->replay_diverged), at_peek(&c->not_remembered), news,
                         at_peek(&c->suspended_ns));
}

/* in_hand(mailbox) -> [(token, reader, deliveries, header, type, sender, payload_len, running, strikes, kills,
 * once)] */
PyObject *port_in_hand_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 1, "in_hand") || !as_mailbox(self, args[0], &mailbox)) return NULL;
    cv_run *run = &self->port.run;
    cv_mailbox *m = mailbox_at(self, mailbox);
    if (!m && PyErr_Occurred()) return NULL;
    PyObject *list = PyList_New(0);
    uint8_t kind[UINT16_MAX];
    for (unsigned e = 0; m && list && e < CV_HAND; e++) {
        uint64_t meta;
        mb_message message = {.body = kind};
        if (!mb_look(run, m, mailbox, e, &meta, &message.header, kind)) continue;
        PyObject *type, *sender;
        type_and_sender(self, &message, &type, &sender);
        PyObject *tuple = type && sender ? Py_BuildValue("IIIy#OOIOIIO", e, cv_meta_reader(meta), cv_meta_deliveries(meta),
                                                         &message.header, (Py_ssize_t)sizeof message.header, type, sender,
                                                         message.header.payload_len,
                                                         meta & CV_META_WAITS ? Py_False : Py_True,
                                                         cv_meta_strikes(meta), cv_meta_kills(meta),
                                                         meta & CV_META_ONCE ? Py_True : Py_False)
                                         : NULL;
        Py_XDECREF(type);
        Py_XDECREF(sender);
        if (!tuple || PyList_Append(list, tuple) < 0) Py_CLEAR(list);
        Py_XDECREF(tuple);
    }
    return list;
}

/* memory() -> (bytes used by chunks, bytes the kernel gave, limit, errno of the last refusal) */
PyObject *port_memory_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    if (!is_open(self)) return NULL;
    cv_arena *a = &self->port.arena;
    return Py_BuildValue("KKKi", a->used, a->backed, a->limit, a->last_errno);
}

/* trim(keep_bytes) -> bytes given back to the kernel */
PyObject *port_trim_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint64_t keep;
    if (!is_open(self) || !count_is(n, 1, 1, "trim") || !as_u64(args[0], &keep)) return NULL;
    cv_ledger_look_all(&self->port.ledger);
    return PyLong_FromUnsignedLongLong(cv_arena_trim(&self->port.arena, keep));
}

/* note_suspended(mailbox, since_ns): for all who look; 0: it is not suspended */
PyObject *port_note_suspended_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    uint64_t since_ns;
    if (!is_open(self) || !count_is(n, 2, 2, "note_suspended") || !as_mailbox(self, args[0], &mailbox) ||
        !as_u64(args[1], &since_ns))
        return NULL;
    if (!mailbox_at(self, mailbox) && PyErr_Occurred()) return NULL;
    if (mailbox != NO_MAILBOX) at_poke(&cv_cell_at(&self->port.run, mailbox)->suspended_ns, since_ns);
    Py_RETURN_NONE;
}
