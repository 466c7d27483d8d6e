/* Approach, enter, close, detach: where a process's view of the run is mapped and let go. */
#include "_shm.h" /* Python.h comes before every header of the system */

#include <sys/mman.h>
#include <sys/stat.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#define POPULATE_MAX (16ull << 20) /* of the mailboxes: thousands of them cost more page tables than the first look at a few */

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
    self->open = false;
    if (!self->mapped) return;
    self->mapped = false;
    if (!self->reads) port_leave(&self->port);
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
    ((PortObject *)object)->open = ((PortObject *)object)->mapped = false;
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

/* Map one segment and check its header; NULL with an exception set. Not in forked children. */
static uint8_t *map_segment(int fd, int protection, uint32_t kind, const uint8_t *run_id, uint64_t *size) {
    struct stat st;
    if (fstat(fd, &st) < 0) return (uint8_t *)PyErr_SetFromErrno(PyExc_OSError);
    *size = (uint64_t)st.st_size;
    if (*size < CV_PAGE) {
        PyErr_SetString(PyExc_ValueError, "segment refused: it is smaller than a header");
        return NULL;
    }
    uint8_t *at = mmap(NULL, *size, protection, MAP_SHARED, fd, 0);
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

/* Have the pages of what every process looks at first in its page tables, as far as there is memory behind them. */
static void populate(cv_run *run) {
    uint64_t mail = at_acquire(cv_mail_end(run));
    if (mail > run->mail_size) mail = run->mail_size;
    if (mail > POPULATE_MAX) mail = POPULATE_MAX;
    /* A kernel before 5.14 does not know it: the pages come one by one then, when they are needed. */
    madvise(run->directory, run->directory_size, MADV_POPULATE_READ);
    madvise(run->cells, run->cells_size, MADV_POPULATE_READ);
    madvise(run->mail, mail & ~(uint64_t)(CV_PAGE - 1), MADV_POPULATE_READ);
}

/* What everybody looks into: directory, cells and mailboxes. False: an exception is set, and what was mapped is in `run`. */
static bool map_common(cv_run *run, int directory_fd, int cells_fd, int mail_fd, int protection) {
    if (!(run->directory = map_segment(directory_fd, protection, CV_KIND_DIRECTORY, NULL, &run->directory_size))) return false;
    cv_segment head;
    memcpy(&head, run->directory, sizeof head);
    run->slots = head.slots;
    run->mailboxes = head.mailboxes;
    if (run->directory_size != cv_directory_size(head.slots, head.mailboxes)) {
        PyErr_SetString(PyExc_ValueError, "segment refused: its size does not fit its counts");
        return false;
    }
    if (!(run->cells = map_segment(cells_fd, protection, CV_KIND_CELLS, head.run_id, &run->cells_size))) return false;
    if (!(run->mail = map_segment(mail_fd, protection, CV_KIND_MAIL, head.run_id, &run->mail_size))) return false;
    if (run->cells_size < cv_cells_size(head.mailboxes)) {
        PyErr_SetString(PyExc_ValueError, "segment refused: the cells are too few");
        return false;
    }
    memcpy(&run->seed, head.run_id, 8);
    run->seed = cv_bytes_mix(run->seed, head.run_id, 2);
    return true;
}

/* Map the run, its arenas to be read. False: an exception is set, and what was mapped is in `run`. */
static bool approach(PortObject *self, int directory_fd, int cells_fd, int mail_fd, PyObject *arena_fds, PyObject *door_fds) {
    cv_run *run = &self->port.run;
    if (!map_common(run, directory_fd, cells_fd, mail_fd, PROT_READ | PROT_WRITE) ||
        !fill_fds(arena_fds, self->arena_fds, run->slots) || !fill_fds(door_fds, run->door, run->slots))
        return false;
    struct stat st; /* all arenas are as large as the first one: what is no arena is refused by who begins to write there */
    if (fstat(self->arena_fds[0], &st) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    for (unsigned i = 0; i < run->slots; i++) {
        run->arena_size[i] = (uint64_t)st.st_size;
        if (!(run->arena[i] = map_peer(self->arena_fds[i], run->arena_size[i]))) return false;
    }
    self->mail_fd = mail_fd;
    return true;
}

/* Become the process of a slot: from here on this process writes. False: an exception is set. */
static bool enter(PortObject *self, unsigned slot, uint64_t incarnation) {
    cv_run *run = &self->port.run;
    cv_segment head;
    memcpy(&head, run->directory, sizeof head);
    if (slot >= run->slots) {
        PyErr_Format(PyExc_ValueError, "slot %u of %u", slot, run->slots);
        return false;
    }
    const char *why = cv_segment_refuse(run->arena[slot], run->arena_size[slot], CV_KIND_ARENA, head.run_id);
    if (why) {
        PyErr_Format(PyExc_ValueError, "segment refused: %s", why);
        return false;
    }
    if (mprotect(run->arena[slot], run->arena_size[slot], PROT_READ | PROT_WRITE)) return PyErr_SetFromErrno(PyExc_OSError);
    madvise(run->arena[slot], run->arena_size[slot], MADV_DONTFORK);
    run->me = slot;
    run->incarnation = incarnation;
    /* A process has the lock of its slot by now. Its host may have died meanwhile, and another one have the run. */
    cv_slot *mine = cv_slot_at(run, slot);
    if (slot && (at_load(&mine->incarnation) != incarnation || at_load(&mine->state) != CV_SLOT_LIVE)) {
        PyErr_Format(PyExc_ValueError, "slot %u is no longer that of its incarnation %llu", slot,
                     (unsigned long long)incarnation);
        return false;
    }
    self->port.random = run->seed ^ cv_now_ns(CLOCK_REALTIME) ^ (uint64_t)getpid() << 40 ^ incarnation << 20 ^ slot;
    self->views = calloc(run->mailboxes, sizeof *self->views);
    self->open = true;
    if (!self->views || port_attach(&self->port, self->arena_fds[slot])) {
        PyErr_NoMemory();
        return false;
    }
    return true;
}

/* Of either type, with nothing mapped. */
static PortObject *new_object(PyTypeObject *type) {
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PortObject *self = (PortObject *)allocate(type, 0);
    if (!self) return NULL;
    self->mapped = true;
    PyObject *errors = PyImport_ImportModule("civitas_shm.errors");
    self->closed_error = errors ? PyObject_GetAttrString(errors, "TransportClosed") : NULL;
    Py_XDECREF(errors);
    self->done = PyUnicode_InternFromString("done");
    self->set_result = PyUnicode_InternFromString("set_result");
    if (!self->closed_error || !self->done || !self->set_result) Py_CLEAR(self);
    return self;
}

/* Port(directory_fd, cells_fd, mail_fd, arena_fds, door_fds[, slot, incarnation]): without a slot it is open for nothing,
 * and changes nothing, until `enter`. */
PyObject *port_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    int directory_fd, cells_fd, mail_fd;
    unsigned slot = CV_SLOTS_MAX;
    unsigned long long incarnation = 0;
    PyObject *arena_fds, *door_fds;
    if ((kwargs && PyDict_Size(kwargs)) || !PyArg_ParseTuple(args, "iiiOO|IK", &directory_fd, &cells_fd, &mail_fd,
                                                            &arena_fds, &door_fds, &slot, &incarnation))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "Port takes positional arguments");
    PortObject *self = new_object(type);
    if (!self) return NULL;
    if (!approach(self, directory_fd, cells_fd, mail_fd, arena_fds, door_fds) ||
        (PyTuple_Size(args) > 5 && !enter(self, slot, incarnation))) {
        Py_DECREF(self);
        return NULL;
    }
    if (!self->open) populate(&self->port.run);
    return (PyObject *)self;
}

/* enter(slot, incarnation): of a Port that was made without a slot, once. What it raises leaves the Port closed. */
PyObject *port_enter_py(PyObject *object, PyObject *const *args, Py_ssize_t n) {
    PortObject *self = (PortObject *)object;
    uint32_t slot;
    uint64_t incarnation;
    if (!count_is(n, 2, 2, "enter") || !as_u32(args[0], "slot", &slot) || !as_u64(args[1], &incarnation)) return NULL;
    if (self->open || !self->mapped) {
        PyErr_SetString(PyExc_RuntimeError, "enter() was called on a Port that has a slot, or is closed.");
        return NULL;
    }
    if (enter(self, slot, incarnation)) Py_RETURN_NONE;
    leave(self);
    return NULL;
}

/* Reader(directory_fd, cells_fd, mail_fd, arena_fds) */
PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    int directory_fd, cells_fd, mail_fd;
    PyObject *arena_fds;
    if ((kwargs && PyDict_Size(kwargs)) || !PyArg_ParseTuple(args, "iiiO", &directory_fd, &cells_fd, &mail_fd, &arena_fds))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "Reader takes positional arguments");
    PortObject *self = new_object(type);
    if (!self) return NULL;
    self->reads = true;
    cv_run *run = &self->port.run;
    bool good = map_common(run, directory_fd, cells_fd, mail_fd, PROT_READ) && fill_fds(arena_fds, self->arena_fds, run->slots);
    for (unsigned slot = 0; good && slot < run->slots; slot++) {
        struct stat st;
        good = fstat(self->arena_fds[slot], &st) == 0;
        if (!good) PyErr_SetFromErrno(PyExc_OSError);
        else run->arena_size[slot] = (uint64_t)st.st_size;
    }
    if (good && !(self->views = calloc(run->mailboxes, sizeof *self->views))) {
        PyErr_NoMemory();
        good = false;
    }
    self->open = good;
    if (!good) Py_CLEAR(self);
    return (PyObject *)self;
}
