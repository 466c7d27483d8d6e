/* Reader: a view of a run that cannot write. Its memory is mapped PROT_READ, so a store here would be a fault and no harm. */
#include "_shm.h"

#define PEEK_MAX 4096u

/* peek(mailbox, most, bytes_most) -> [(where, lane, deliveries, reader, strikes, once, header, type, sender, payload)]: what
 * is in hand ("running", "waits", "buried"), then what waits ("waiting") in the order in which it is served; of each payload
 * the first bytes, its length stands in the header. What goes while it is looked at is left out. */
PyObject *reader_peek_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox, most, bytes_most;
    if (!is_open(self) || !count_is(n, 3, 3, "peek") || !as_mailbox(self, args[0], &mailbox) ||
        !as_u32(args[1], "most", &most) || !as_u32(args[2], "bytes_most", &bytes_most))
        return NULL;
    if (most > PEEK_MAX) most = PEEK_MAX;
    cv_run *run = &self->port.run;
    cv_mailbox *m = mailbox_at(self, mailbox);
    if (!m && PyErr_Occurred()) return NULL;
    PyObject *list = PyList_New(0);
    lk_place *places = m && most ? malloc(most * sizeof *places) : NULL;
    uint64_t room = (uint64_t)UINT16_MAX + bytes_most; /* a type is at most that long */
    uint8_t *body = malloc(room);
    uint32_t found = places ? lk_places(run, mailbox, m, places, most) : 0;
    if (!body || (m && most && !places)) {
        Py_CLEAR(list);
        PyErr_NoMemory();
    }
    for (uint32_t i = 0; list && i < found; i++) {
        const lk_place *place = &places[i];
        cv_header h = {0};
        int64_t size = lk_read(run, self->arena_fds, mailbox, place, &h, body, room);
        if (size < (int64_t)h.type_len) continue;
        uint64_t payload = (uint64_t)size - h.type_len;
        if (payload > bytes_most) payload = bytes_most;
        bool in_hand = place->entry < CV_HAND;
        const char *where = !in_hand                                             ? "waiting"
                            : cv_meta_state(place->meta) == CV_HAND_BURIED ? "buried"
                            : place->meta & CV_META_WAITS                     ? "waits"
                                                                              : "running";
        PyObject *type = type_of(self, body, h.type_len);
        PyObject *sender = name_of(self, h.sender);
        PyObject *tuple = type && sender
                              ? Py_BuildValue("sIIIIOy#OOy#", where, place->lane, in_hand ? cv_meta_deliveries(place->meta) : 0,
                                              in_hand ? cv_meta_reader(place->meta) : 0,
                                              in_hand ? cv_meta_strikes(place->meta) : 0,
                                              in_hand && place->meta & CV_META_ONCE ? Py_True : Py_False, &h,
                                              (Py_ssize_t)sizeof h, type, sender, body + h.type_len, (Py_ssize_t)payload)
                              : NULL;
        Py_XDECREF(type);
        Py_XDECREF(sender);
        if (!tuple || PyList_Append(list, tuple) < 0) Py_CLEAR(list);
        Py_XDECREF(tuple);
    }
    free(places);
    free(body);
    return list;
}

/* life(mailbox) -> incarnation of its agent's last start */
PyObject *reader_life_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t mailbox;
    if (!is_open(self) || !count_is(n, 1, 1, "life") || !as_mailbox(self, args[0], &mailbox)) return NULL;
    if (mailbox == NO_MAILBOX || mailbox >= cv_records(&self->port.run)) return PyLong_FromLong(0);
    return PyLong_FromUnsignedLongLong(cv_agent_incarnation(at_load(&cv_record_at(&self->port.run, mailbox)->word)));
}

/* close(): let go of the mappings; the descriptors are the caller's */
PyObject *reader_close_py(PyObject *object, PyObject *unused) {
    (void)unused;
    return port_close_py(object, NULL, 0);
}
