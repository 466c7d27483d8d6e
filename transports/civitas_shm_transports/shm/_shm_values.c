/* Values of both worlds: headers, outcomes, and the str of names and types, which are made once. */
#include "_shm.h"

bool as_header(PyObject *object, cv_header *h, bool *present) {
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

/* Decoded from a private copy: bytes in shared memory may change under the decoder. */
static PyObject *text_of(const void *at, size_t size) {
    PyObject *copy = PyBytes_FromStringAndSize(at, (Py_ssize_t)size);
    PyObject *text = copy ? PyUnicode_FromEncodedObject(copy, "utf-8", "replace") : NULL;
    Py_XDECREF(copy);
    return text;
}

/* A name is kept for the handle that it was read for: the mailbox may be another agent's by now. */
PyObject *name_of(PortObject *self, uint32_t handle) {
    cv_run *run = &self->port.run;
    if (handle == UINT32_MAX) return PyUnicode_FromString("_runtime"); /* SENDER_PROGRAM of transport.py */
    if (cv_index(handle) >= cv_records(run)) return PyUnicode_FromString("?");
    mailbox_view *view = &self->views[cv_index(handle)];
    if (!view->name || view->named != 1 + handle) {
        char bytes[CV_NAME_MAX];
        size_t size = cv_name(run, handle, bytes);
        if (!size) return PyUnicode_FromString("_gone");
        PyObject *name = text_of(bytes, size);
        if (!name) return NULL;
        Py_XDECREF(view->name);
        view->name = name;
        view->named = 1 + handle;
    }
    Py_INCREF(view->name);
    return view->name;
}

PyObject *type_of(PortObject *self, const uint8_t *at, size_t size) {
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

/* New references, or NULL. Of a message from another host both stand in the place of the type. */
void type_and_sender(PortObject *self, const mb_message *m, PyObject **type, PyObject **sender) {
    size_t size = m->header.type_len, name = 0;
    if (!(m->header.flags & CV_FLAG_FOREIGN)) {
        *type = type_of(self, m->body, size);
        *sender = name_of(self, m->header.sender);
        return;
    }
    if (size >= 2) name = (size_t)m->body[size - 2] | (size_t)m->body[size - 1] << 8;
    if (size < 2 || name > size - 2) { /* damaged: no reader is told more than there is */
        *type = PyUnicode_FromString("");
        *sender = PyUnicode_FromString("?");
        return;
    }
    *type = type_of(self, m->body, size - 2 - name);
    *sender = type_of(self, m->body + size - 2 - name, name);
}

bool as_slots(PortObject *self, PyObject *sequence, cv_set *out) {
    *out = (cv_set){{0}};
    Py_ssize_t n = PySequence_Size(sequence);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        uint32_t slot;
        bool known = item && as_u32(item, "slot", &slot);
        Py_XDECREF(item);
        if (!known) return false;
        if (slot >= self->port.run.slots) return PyErr_Format(PyExc_IndexError, "no slot %u", slot), false;
        cv_set_add(out, slot);
    }
    return n >= 0;
}

PyObject *slots_of(PortObject *self, cv_set set) {
    PyObject *list = PyList_New(0);
    for (unsigned slot = 0; list && slot < self->port.run.slots; slot++) {
        if (!cv_set_has(set, slot)) continue;
        PyObject *number = PyLong_FromUnsignedLong(slot);
        if (!number || PyList_Append(list, number) < 0) Py_CLEAR(list);
        Py_XDECREF(number);
    }
    return list;
}

PyObject *outcome(int rc) {
    if (rc == PORT_UNKNOWN) {
        PyErr_SetString(PyExc_IndexError, "no mailbox of that number");
        return NULL;
    }
    return PyLong_FromLong(rc);
}
