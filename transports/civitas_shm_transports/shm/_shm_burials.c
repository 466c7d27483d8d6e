/* Delivery and its end: begin, forgo, strike, bury; what the host reads, judges and discards of it; the copy of a letter. */
#include "_shm.h"

#define BURIED_AT_ONCE 256

/* (mailbox, entry) of args; NULL: *none says whether there is no such thing (then no exception is set). */
static cv_mailbox *entry_of(PortObject *self, PyObject *const *args, uint32_t *mailbox, uint32_t *entry) {
    if (!as_mailbox(self, args[0], mailbox) || !as_u32(args[1], "token", entry)) return NULL;
    return mailbox_at(self, *mailbox);
}

/* --- readers ---------------------------------------------------------------------------------------------------------- */

/* begin(mailbox, token) -> deliveries: the handler of a message that waited in hand begins now. 0: it is not in hand here */
PyObject *port_begin_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox, entry;
    if (!is_open(self) || !count_is(n, 2, 2, "begin")) return NULL;
    cv_mailbox *m = entry_of(self, args, &mailbox, &entry);
    if (!m && PyErr_Occurred()) return NULL;
    mb_message message = {.entry = entry, .deliveries = m ? mb_begin(&self->port.run, m, entry) : 0};
    if (message.deliveries) {
        uint64_t word = at_load(&m->hand[entry].ref);
        const uint8_t *at = cv_chunk_at(&self->port.run, cv_word_ref(word), sizeof message.header);
        if (at) memcpy(&message.header, at, sizeof message.header);
        port_begin(&self->port, mailbox, &message, cv_now_ns(CLOCK_MONOTONIC));
    }
    return PyLong_FromUnsignedLong(message.deliveries);
}

/* forgo(mailbox, token): at-most-once, before the handler */
PyObject *port_forgo_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox, entry;
    if (!is_open(self) || !count_is(n, 2, 2, "forgo")) return NULL;
    cv_mailbox *m = entry_of(self, args, &mailbox, &entry);
    if (!m && PyErr_Occurred()) return NULL;
    return PyBool_FromLong(m && mb_forgo(&self->port.run, m, entry));
}

/* strike(mailbox, token) -> strikes */
PyObject *port_strike_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox, entry;
    if (!is_open(self) || !count_is(n, 2, 2, "strike")) return NULL;
    cv_mailbox *m = entry_of(self, args, &mailbox, &entry);
    if (!m && PyErr_Occurred()) return NULL;
    unsigned strikes = m ? mb_strike(&self->port.run, m, entry) : 0;
    if (strikes && self->port.effect[mailbox]) cv_effect_end(self->port.effect[mailbox], entry);
    return PyLong_FromUnsignedLong(strikes);
}

/* bury(mailbox, token): no handler gets it again; the caller has posted its note before. */
PyObject *port_bury_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox, entry;
    if (!is_open(self) || !count_is(n, 2, 2, "bury")) return NULL;
    cv_mailbox *m = entry_of(self, args, &mailbox, &entry);
    if (!m && PyErr_Occurred()) return NULL;
    if (m && mb_bury(&self->port.run, m, entry)) {
        self->views[mailbox].taken &= ~(1ull << entry);
        port_end(&self->port, mailbox, entry, cv_now_ns(CLOCK_MONOTONIC));
    }
    Py_RETURN_NONE;
}

/* --- host ------------------------------------------------------------------------------------------------------------- */

/* judge(mailbox, token, dead slot, strikes, kills, alone) */
PyObject *port_judge_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox, entry, dead, strikes, kills;
    if (!is_open(self) || !count_is(n, 6, 6, "judge")) return NULL;
    cv_mailbox *m = entry_of(self, args, &mailbox, &entry);
    if ((!m && PyErr_Occurred()) || !as_u32(args[2], "slot", &dead) || !as_u32(args[3], "strikes", &strikes) ||
        !as_u32(args[4], "kills", &kills))
        return NULL;
    return PyBool_FromLong(m && mb_judge(m, entry, dead, strikes, kills, args[5] == Py_True));
}

/* Who is dead for sure: what the host itself has noted, and the host's own slot, which holds nothing. */
static cv_set dead_slots(const cv_run *run) {
    cv_set dead = cv_set_of(run->me);
    for (unsigned s = 0; s < run->slots; s++)
        if (at_load(&cv_slot_at(run, s)->state) == CV_SLOT_DEAD) cv_set_add(&dead, s);
    return dead;
}

/* discard(mailbox, token) -> whether there was such a thing */
PyObject *port_discard_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox, entry;
    if (!is_open(self) || !count_is(n, 2, 2, "discard")) return NULL;
    cv_mailbox *m = entry_of(self, args, &mailbox, &entry);
    if (!m && PyErr_Occurred()) return NULL;
    return PyBool_FromLong(m && mb_discard(&self->port.run, m, entry, dead_slots(&self->port.run)));
}

/* (mailbox, token, deliveries, strikes, header, type, sender, payload, sound, once) of an entry that nobody changes any more.
 * What does not check out gives the header's bytes as they are, if they can be read at all. */
static PyObject *letter_of(PortObject *self, uint32_t mailbox, cv_mailbox *m, unsigned entry) {
    cv_run *run = &self->port.run;
    uint64_t meta = at_load(&m->hand[entry].meta), word = at_load(&m->hand[entry].ref);
    unsigned lane = (unsigned)(word >> 40) & 3u;
    mb_message message;
    bool sound = lane < CV_LANES && mb_read(run, mailbox, lane, cv_meta_position(meta), cv_word_ref(word), &message);
    if (!sound) {
        const uint8_t *at = cv_chunk_at(run, cv_word_ref(word), sizeof message.header);
        if (at) memcpy(&message.header, at, sizeof message.header);
        else memset(&message.header, 0, sizeof message.header);
    }
    const cv_header *h = &message.header;
    PyObject *type, *sender, *tuple = NULL;
    if (sound) {
        type_and_sender(self, &message, &type, &sender);
    } else {
        type = PyUnicode_FromString("");
        sender = PyUnicode_FromString("");
    }
    if (type && sender)
        tuple = Py_BuildValue("IIIIy#OOy#OO", cv_handle(run, mailbox), entry, cv_meta_deliveries(meta), cv_meta_strikes(meta), h,
                              (Py_ssize_t)sizeof *h, type, sender, sound ? (const char *)message.body + h->type_len : "",
                              (Py_ssize_t)(sound ? h->payload_len : 0), sound ? Py_True : Py_False,
                              meta & CV_META_ONCE ? Py_True : Py_False);
    Py_XDECREF(type);
    Py_XDECREF(sender);
    return tuple;
}

/* read(mailbox, token) -> one of these */
PyObject *port_read_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox, entry;
    if (!is_open(self) || !count_is(n, 2, 2, "read")) return NULL;
    cv_mailbox *m = entry_of(self, args, &mailbox, &entry);
    if (!m && PyErr_Occurred()) return NULL;
    if (!m || entry >= CV_HAND) return PyErr_Format(PyExc_LookupError, "nothing is in hand there");
    return letter_of(self, mailbox, m, entry);
}

/* buried() -> a list of these, BURIED_AT_ONCE at most. SYNC POINT "given up": entries are read before their notes. */
PyObject *port_buried_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    if (!is_open(self)) return NULL;
    cv_run *run = &self->port.run;
    PyObject *list = PyList_New(0);
    Py_ssize_t found = 0;
    for (uint32_t mailbox = 0; list && mailbox < cv_records(run) && found < BURIED_AT_ONCE; mailbox++) {
        cv_mailbox *m = cv_mailbox_at(run, mailbox);
        uint64_t high = m ? at_load(&m->hand_high) : 0;
        for (unsigned e = 0; list && e < CV_HAND && e < high && found < BURIED_AT_ONCE; e++) {
            if (cv_meta_state(at_load(&m->hand[e].meta)) != CV_HAND_BURIED) continue;
            PyObject *tuple = letter_of(self, mailbox, m, e);
            if (!tuple || PyList_Append(list, tuple) < 0) Py_CLEAR(list);
            Py_XDECREF(tuple);
            found++;
        }
    }
    return list;
}

/* fire(mailbox, header, payload, type, sender, priority, expires_ns, number) -> outcome: what was delayed is due. A message
 * with an id of its own, of the trace of `header`; `number` is its evidence, see was_sent. */
PyObject *port_fire_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    port_post post = {.lane = CV_LANE_NORMAL};
    cv_header order;
    bool present;
    char *bytes;
    Py_ssize_t size, type_size;
    if (!is_open(self) || !count_is(n, 8, 8, "fire") || !as_recipient(args[0], &post) ||
        !as_header(args[1], &order, &present) || PyBytes_AsStringAndSize(args[2], &bytes, &size) < 0 ||
        !as_u32(args[4], "sender", &post.sender) || !as_u64(args[6], &post.deadline_ns) || !as_u64(args[7], &post.number))
        return NULL;
    long priority = PyLong_AsLong(args[5]);
    if (priority == -1 && PyErr_Occurred()) return NULL;
    if (!present) return PyErr_Format(PyExc_TypeError, "fire() needs the header of the order");
    if (!(post.type = PyUnicode_AsUTF8AndSize(args[3], &type_size))) return NULL;
    post.type_len = (uint64_t)type_size;
    post.payload = bytes;
    post.payload_len = (uint64_t)size;
    post.cause = &order;
    post.priority = (int32_t)priority;
    if (priority > 0) post.lane = CV_LANE_PRIORITY;
    if (post.deadline_ns) post.flags |= CV_FLAG_MORTAL;
    return outcome(port_send(&self->port, &post));
}

/* next_number() -> a number that no message of this slot has had */
PyObject *port_next_number_py(PyObject *object, PyObject *unused) {
    (void)unused;
    PortObject *self = (PortObject *)object;
    if (!is_open(self)) return NULL;
    return PyLong_FromUnsignedLongLong(port_next_number(&self->port));
}

/* was_sent(mailbox, number) -> whether this slot has published a message of that number there, in this life or an earlier
 * one; only while nobody reads or sends, and if it has given out no higher number since. */
PyObject *port_was_sent_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    uint64_t number;
    if (!is_open(self) || !count_is(n, 2, 2, "was_sent") || !as_mailbox(self, args[0], &mailbox) || !as_u64(args[1], &number))
        return NULL;
    if (mailbox == NO_MAILBOX) Py_RETURN_FALSE;
    return PyBool_FromLong(cv_number_was_published(&self->port.run, mailbox, number, self->port.run.me));
}

/* repost(mailbox, header, payload, type, sender) -> outcome: a copy, one hop more, of the same trace; never an ask */
PyObject *port_repost_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    port_post post = {.lane = CV_LANE_NORMAL};
    cv_header original;
    bool present;
    char *bytes;
    Py_ssize_t size, type_size;
    if (!is_open(self) || !count_is(n, 5, 5, "repost") || !as_recipient(args[0], &post) ||
        !as_header(args[1], &original, &present) || PyBytes_AsStringAndSize(args[2], &bytes, &size) < 0 ||
        !as_u32(args[4], "sender", &post.sender))
        return NULL;
    if (!present) return PyErr_Format(PyExc_TypeError, "repost() needs the header of the original");
    if (!(post.type = PyUnicode_AsUTF8AndSize(args[3], &type_size))) return NULL;
    post.type_len = (uint64_t)type_size;
    post.payload = bytes;
    post.payload_len = (uint64_t)size;
    post.cause = &original;
    post.priority = original.priority;
    post.hops = original.hops < UINT16_MAX ? (uint16_t)(original.hops + 1) : UINT16_MAX;
    if (original.priority > 0) post.lane = CV_LANE_PRIORITY;
    return outcome(port_send(&self->port, &post));
}
