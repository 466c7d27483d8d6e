/* What a process of the run does to itself and not to memory: its birth and its death. */
#include "_shm.h" /* Python.h comes before every header of the system */

#include "birth.h"
#include "keeper.h"

/* keep_memory() -> pid of this process's keeper (keeper.h), 0 where none can be had. In the main thread, once. */
PyObject *module_keep_memory(PyObject *module, PyObject *unused) {
    (void)module; (void)unused;
    pid_t keeper = cv_keep_memory();
    return PyLong_FromLong(keeper < 0 ? 0 : keeper);
}

/* fork_away() -> (whether this is the new process, pid of the one in between); see birth.h. */
PyObject *module_fork_away(PyObject *module, PyObject *unused) {
    (void)module; (void)unused;
    PyOS_BeforeFork();
    cv_birth birth = cv_fork_away();
    if (birth.is_new)
        PyOS_AfterFork_Child();
    else
        PyOS_AfterFork_Parent();
    if (birth.error) {
        errno = birth.error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return Py_BuildValue("Oi", birth.is_new ? Py_True : Py_False, (int)birth.between);
}
