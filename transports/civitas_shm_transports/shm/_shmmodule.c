/* The module: its tables, and what needs no Port. What the parts share, and the rules of all of them: _shm.h. */
#include "_shm.h" /* Python.h comes before every header of the system */

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define PORT_FAST(name) {#name, (PyCFunction)(void (*)(void))port_##name##_py, METH_FASTCALL, NULL},
#define PORT_PLAIN(name) {#name, port_##name##_py, METH_NOARGS, NULL},
static PyMethodDef port_methods[] = {PORT_METHODS(PORT_FAST, PORT_PLAIN){NULL, NULL, 0, NULL}};
#undef PORT_FAST
#undef PORT_PLAIN

static PyType_Slot port_slots[] = {
    {Py_tp_new, port_new}, {Py_tp_dealloc, port_dealloc}, {Py_tp_methods, port_methods}, {0, NULL}};
static PyType_Spec port_spec = {.name = "civitas_shm_transports.shm._shm.Port",
                                .basicsize = sizeof(PortObject),
                                .flags = Py_TPFLAGS_DEFAULT,
                                .slots = port_slots};

#define READER_FAST(name) {#name, (PyCFunction)(void (*)(void))reader_##name##_py, METH_FASTCALL, NULL},
#define READER_PLAIN(name) {#name, reader_##name##_py, METH_NOARGS, NULL},
#define PORT_FAST(name) {#name, (PyCFunction)(void (*)(void))port_##name##_py, METH_FASTCALL, NULL},
#define PORT_PLAIN(name) {#name, port_##name##_py, METH_NOARGS, NULL},
static PyMethodDef reader_methods[] = {READER_METHODS(PORT_FAST, PORT_PLAIN, READER_FAST, READER_PLAIN){NULL, NULL, 0, NULL}};
#undef PORT_FAST
#undef PORT_PLAIN
static PyType_Slot reader_slots[] = {
    {Py_tp_new, reader_new}, {Py_tp_dealloc, port_dealloc}, {Py_tp_methods, reader_methods}, {0, NULL}};
static PyType_Spec reader_spec = {.name = "civitas_shm_transports.shm._shm.Reader",
                                  .basicsize = sizeof(PortObject),
                                  .flags = Py_TPFLAGS_DEFAULT,
                                  .slots = reader_slots};

/* sizes(slots, mailboxes) -> (directory bytes, cells bytes) */
static PyObject *module_sizes(PyObject *module, PyObject *args) {
    (void)module;
    unsigned slots, mailboxes;
    if (!PyArg_ParseTuple(args, "II", &slots, &mailboxes)) return NULL;
    return Py_BuildValue("KK", cv_directory_size(slots, mailboxes), cv_cells_size(mailboxes));
}
/* format(fd, kind, run_id, slots, mailboxes, owner, back_bytes): write a header into a fresh segment of its final size */
static PyObject *module_format(PyObject *module, PyObject *args) {
    (void)module;
    int fd;
    unsigned kind, slots, mailboxes, owner;
    unsigned long long back;
    const char *run_id;
    Py_ssize_t id_size;
    struct stat st;
    if (!PyArg_ParseTuple(args, "iIy#IIIK", &fd, &kind, &run_id, &id_size, &slots, &mailboxes, &owner, &back)) return NULL;
    if (id_size != 16) return PyErr_Format(PyExc_ValueError, "a run id is 16 bytes, not %zd", id_size);
    if (fstat(fd, &st) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    int rc;
    do { rc = fallocate(fd, 0, 0, (off_t)back) ? errno : 0; } while (rc == EINTR);
    if (rc) {
        errno = rc;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    uint8_t *at = mmap(NULL, back, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return PyErr_SetFromErrno(PyExc_OSError);
    cv_segment_format(at, kind, (const uint8_t *)run_id, (uint64_t)st.st_size, slots, mailboxes, owner);
    if (kind == CV_KIND_DIRECTORY) at_poke((at_u64 *)(at + CV_DIR_MAIL_END), CV_PAGE);
    munmap(at, back);
    Py_RETURN_NONE;
}
/* refuse(fd, kind) -> None or the reason; (slots, mailboxes, run_id) when it is sound */
static PyObject *module_inspect(PyObject *module, PyObject *args) {
    (void)module;
    int fd;
    unsigned kind;
    struct stat st;
    if (!PyArg_ParseTuple(args, "iI", &fd, &kind)) return NULL;
    if (fstat(fd, &st) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    if ((uint64_t)st.st_size < CV_PAGE || st.st_blocks == 0)
        return PyUnicode_FromString("it is smaller than a header");
    uint8_t *at = mmap(NULL, CV_PAGE, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return PyErr_SetFromErrno(PyExc_OSError);
    cv_segment head;
    memcpy(&head, at, sizeof head);
    const char *why = cv_segment_refuse(at, (uint64_t)st.st_size, kind, NULL);
    munmap(at, CV_PAGE);
    if (why) return PyUnicode_FromString(why);
    return Py_BuildValue("IIy#", head.slots, head.mailboxes, head.run_id, (Py_ssize_t)16);
}
/* eventfd() -> fd: non-blocking, close-on-exec */
static PyObject *module_eventfd(PyObject *module, PyObject *unused) {
    (void)module; (void)unused;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return fd < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(fd);
}

static PyMethodDef module_methods[] = {{"sizes", module_sizes, METH_VARARGS, NULL},
                                       {"format", module_format, METH_VARARGS, NULL},
                                       {"inspect", module_inspect, METH_VARARGS, NULL},
                                       {"eventfd", module_eventfd, METH_NOARGS, NULL},
                                       {"keep_memory", module_keep_memory, METH_NOARGS, NULL},
                                       {"fork_away", module_fork_away, METH_NOARGS, NULL},
                                       {NULL, NULL, 0, NULL}};

static bool add_type(PyObject *module, PyType_Spec *spec, const char *name) {
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    bool added = type && PyModule_AddObjectRef(module, name, type) == 0;
    Py_XDECREF(type);
    return added;
}

static int module_exec(PyObject *module) {
    if (Py_Version >> 16 < PY_VERSION_HEX >> 16) { /* an editable install that several Pythons share; see setup.py */
        PyErr_Format(PyExc_ImportError,
                     "_shm.abi3.so was compiled by Python 3.%d and serves no older one; install again with this Python",
                     PY_MINOR_VERSION);
        return -1;
    }
    if (!add_type(module, &port_spec, "Port") || !add_type(module, &reader_spec, "Reader")) return -1;
    return PyModule_AddIntConstant(module, "LAYOUT_VERSION", CV_LAYOUT_VERSION) ||
           PyModule_AddIntConstant(module, "SLOTS_MAX", CV_SLOTS_MAX) ||
           PyModule_AddIntConstant(module, "REPLICAS_MAX", CV_REPLICAS_MAX) ||
           PyModule_AddIntConstant(module, "MAILBOXES_MAX", CV_MAILBOXES_MAX) ||
           PyModule_AddIntConstant(module, "REPLY_PLACES", PORT_REPLY_PLACES) ||
           PyModule_AddIntConstant(module, "INDEX_MASK", (1 << CV_INDEX_BITS) - 1) ||
           PyModule_AddIntConstant(module, "CAPACITY_MAX", (1 << CV_RING_MAX_LOG2) - 1) ||
           PyModule_AddIntConstant(module, "NAME_MAX", CV_NAME_MAX) ||
           PyModule_AddIntConstant(module, "EFFECT_MAX", CV_EFFECT_MAX) ||
           PyModule_AddIntConstant(module, "ARENA_MAX", (long)(CV_ARENA_EXTENTS_MAX * CV_EXTENT));
}
static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};
static PyModuleDef module_def = {PyModuleDef_HEAD_INIT, .m_name = "_shm", .m_methods = module_methods,
                                 .m_slots = module_slots};
PyMODINIT_FUNC PyInit__shm(void) { return PyModuleDef_Init(&module_def); }
