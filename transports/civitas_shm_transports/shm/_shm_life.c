/* Attach, close, detach: where a process's view of the run is mapped and let go. */
#include "_shm.h" /* Python.h comes before every header of the system */

#include <sys/mman.h>
#include <sys/stat.h>

static void unmap(cv_run *run) {
    if (run->directory) munmap(run->directory, run->directory_size);
    if (run->cells) munmap(run->cells, run->cells_size);
    if (run->mail) munmap(run->mail, run->mail_size);
    for (unsigned i = 0; i < CV_SLOTS_MAX; i++)
        if (run->arena[i]) munmap(run->arena[i], run->arena_size[i]);
    memset(run, 0, sizeof *run);
}

static void leave(PortObject *self) {
    if (self->views)
        for (uint32_t i = 0; i < self->port.run.mailboxes; i++) Py_CLEAR(self->views[i].name);
    for (unsigned i = 0; i < TYPE_CACHE; i++) Py_CLEAR(self->type_cache[i]);
    Py_CLEAR(self->pending);
    Py_CLEAR(self->wake);
    Py_CLEAR(self->forgetful);
    Py_CLEAR(self->stranger);
    if (!self->open) return;
    self->open = false;
    port_leave(&self->port);
    free(self->views);
    self->views = NULL;
    unmap(&self->port.run);
}

/* close(why=""): leave the memory; what is tried later says `why`, unless that is empty. */
PyObject *port_close_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    if (!count_is(n, 0, 1, "close")) return NULL;
    if (((PortObject *)object)->spinning) { /* the mappings are being read without the GIL */
        PyErr_SetString(PyExc_RuntimeError, "close() was called while another thread is in poll(); close on the loop's thread.");
        return NULL;
    }
    leave((PortObject *)object);
    PyObject **text = &((PortObject *)object)->closed_text;
    if (n > 0 && !*text && PyUnicode_Check(args[0]) && PyUnicode_GetLength(args[0]) > 0) {
        Py_INCREF(args[0]);
        *text = args[0];
    }
    Py_RETURN_NONE;
}

/* detach(): in a forked child. The mappings are gone there (MADV_DONTFORK), so nothing may be touched or unmapped. */
PyObject *port_detach_py(PyObject *object, PyObject *unused) {
    (void)unused;
    ((PortObject *)object)->open = false;
    Py_RETURN_NONE;
}

void port_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    leave((PortObject *)object);
    Py_CLEAR(((PortObject *)object)->closed_error);
    Py_CLEAR(((PortObject *)object)->closed_text);
    Py_CLEAR(((PortObject *)object)->done);
    Py_CLEAR(((PortObject *)object)->set_result);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

/* Map one segment that this process writes to and check its header; NULL with an exception set. Not in forked children. */
static uint8_t *map_segment(int fd, uint32_t kind, const uint8_t *run_id, uint64_t *size) {
    struct stat st;
    if (fstat(fd, &st) < 0) return (uint8_t *)PyErr_SetFromErrno(PyExc_OSError);
    *size = (uint64_t)st.st_size;
    if (*size < CV_PAGE) {
        PyErr_SetString(PyExc_ValueError, "segment refused: it is smaller than a header");
        return NULL;
    }
    uint8_t *at = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return (uint8_t *)PyErr_SetFromErrno(PyExc_OSError);
    madvise(at, *size, MADV_DONTFORK);
    madvise(at, *size, MADV_DONTDUMP);
    const char *why = cv_segment_refuse(at, *size, kind, run_id);
    if (why) {
        munmap(at, *size);
        PyErr_Format(PyExc_ValueError, "segment refused: %s", why);
        return NULL;
    }
    return at;
}

/* Another process's arena, to be read: as large as the own one, which says how far it may be looked at. Its header, which
 * the host has checked, is not touched: a hundred pages of a start. What is read of it later is checked chunk by chunk. */
static uint8_t *map_peer(int fd, uint64_t size) {
    struct stat st;
    if (fstat(fd, &st) < 0) return (uint8_t *)PyErr_SetFromErrno(PyExc_OSError);
    if ((uint64_t)st.st_size != size) {
        PyErr_SetString(PyExc_ValueError, "segment refused: an arena is not as large as the others");
        return NULL;
    }
    uint8_t *at = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return (uint8_t *)PyErr_SetFromErrno(PyExc_OSError);
    madvise(at, size, MADV_DONTDUMP);
    return at;
}

static bool fill_fds(PyObject *sequence, int *fds, Py_ssize_t want) {
    if (PySequence_Size(sequence) != want) {
        PyErr_Format(PyExc_ValueError, "expected %zd descriptors, got %zd", want, PySequence_Size(sequence));
        return false;
    }
    for (Py_ssize_t i = 0; i < want; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        long fd = item ? PyLong_AsLong(item) : -1;
        Py_XDECREF(item);
        if (fd == -1 && PyErr_Occurred()) return false;
        fds[i] = (int)fd;
    }
    return true;
}

/* Port(directory_fd, cells_fd, mail_fd, arena_fds, door_fds, slot, incarnation) */
PyObject *port_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    int directory_fd, cells_fd, mail_fd, arenas[CV_SLOTS_MAX];
    unsigned slot;
    unsigned long long incarnation;
    PyObject *arena_fds, *door_fds;
    if ((kwargs && PyDict_Size(kwargs)) || !PyArg_ParseTuple(args, "iiiOOIK", &directory_fd, &cells_fd, &mail_fd,
                                                            &arena_fds, &door_fds, &slot, &incarnation))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "Port takes positional arguments");
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PortObject *self = (PortObject *)allocate(type, 0);
    if (!self) return NULL;
    cv_run *run = &self->port.run;
    PyObject *errors = PyImport_ImportModule("civitas_shm.errors");
    self->closed_error = errors ? PyObject_GetAttrString(errors, "TransportClosed") : NULL;
    Py_XDECREF(errors);
    self->done = PyUnicode_InternFromString("done");
    self->set_result = PyUnicode_InternFromString("set_result");
    if (!self->closed_error || !self->done || !self->set_result) goto fail;
    if (!(run->directory = map_segment(directory_fd, CV_KIND_DIRECTORY, NULL, &run->directory_size))) goto fail;
    cv_segment head;
    memcpy(&head, run->directory, sizeof head);
    run->slots = head.slots;
    run->mailboxes = head.mailboxes;
    run->me = slot;
    run->incarnation = incarnation;
    if (slot >= head.slots) {
        PyErr_Format(PyExc_ValueError, "slot %u of %u", slot, head.slots);
        goto fail;
    }
    if (run->directory_size != cv_directory_size(head.slots, head.mailboxes)) {
        PyErr_SetString(PyExc_ValueError, "segment refused: its size does not fit its counts");
        goto fail;
    }
    if (!fill_fds(arena_fds, arenas, head.slots) || !fill_fds(door_fds, run->door, head.slots)) goto fail;
    if (!(run->cells = map_segment(cells_fd, CV_KIND_CELLS, head.run_id, &run->cells_size))) goto fail;
    if (!(run->mail = map_segment(mail_fd, CV_KIND_MAIL, head.run_id, &run->mail_size))) goto fail;
    if (!(run->arena[slot] = map_segment(arenas[slot], CV_KIND_ARENA, head.run_id, &run->arena_size[slot])))
        goto fail;
    for (unsigned i = 0; i < head.slots; i++) {
        run->arena_size[i] = run->arena_size[slot];
        if (i != slot && !(run->arena[i] = map_peer(arenas[i], run->arena_size[i]))) goto fail;
    }
    if (run->cells_size < cv_cells_size(head.mailboxes)) {
        PyErr_SetString(PyExc_ValueError, "segment refused: the cells are too few");
        goto fail;
    }
    /* A process has the lock of its slot by now. Its host may have died meanwhile, and another one have the run. */
    cv_slot *mine = cv_slot_at(run, slot);
    if (slot && (at_load(&mine->incarnation) != incarnation || at_load(&mine->state) != CV_SLOT_LIVE)) {
        PyErr_Format(PyExc_ValueError, "slot %u is no longer that of its incarnation %llu", slot, incarnation);
        goto fail;
    }
    memcpy(&run->seed, head.run_id, 8);
    run->seed = cv_bytes_mix(run->seed, head.run_id, 2);
    self->mail_fd = mail_fd;
    self->arena_fd = arenas[slot];
    self->port.random = run->seed ^ cv_now_ns(CLOCK_REALTIME) ^ (uint64_t)getpid() << 40 ^ incarnation << 20 ^ slot;
    self->views = calloc(head.mailboxes, sizeof *self->views);
    self->open = true;
    if (!self->views || port_attach(&self->port, self->arena_fd)) {
        PyErr_NoMemory();
        goto fail;
    }
    return (PyObject *)self;
fail:
    if (!self->open) unmap(run);
    Py_DECREF(self);
    return NULL;
}
