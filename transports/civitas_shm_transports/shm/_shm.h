/* What the parts of the binding share: the Port object, checks of arguments, and the list of its methods.
 *
 * The binding is thin: argument checks, buffers, error mapping of native/ to Python (limited API 3.11). No algorithm.
 * Rules of every _shm*.c: methods run under the GIL on the thread of the process's event loop; only the spin releases
 * it. Bytes given to us are copied before the call returns; bytes we return are private copies. Expected outcomes are
 * numbers (see civitas_shm/transport.py), exceptions are for misuse and for a run that cannot be attached.
 *
 *   _shmmodule.c      the module: tables, and what needs no Port
 *   _shm_life.c       approach, enter, close, detach
 *   _shm_values.c     str of names and types, headers
 *   _shm_sending.c    post, post_ask, post_reply
 *   _shm_receiving.c  take, release, listen, poll, replies, waiting for room
 *   _shm_burials.c    delivery and its end: begin, forgo, strike, bury, and what becomes of it
 *   _shm_state.c      an agent's committed state
 *   _shm_looking.c    numbers and records for those who look
 *   _shm_reader.c     a view of a run that cannot write: the type Reader
 *   _shm_watching.c   who waits for whom, and whether loops turn
 *   _shm_host.c       what only the host does
 *   _shm_process.c    births and deaths of processes
 */
#ifndef CV_SHM_BINDING_H
#define CV_SHM_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "directory.h"
#include "look.h"

#define TYPE_CACHE 64

/* What this process knows about one mailbox; entries are in-hand entries, one bit each. */
typedef struct {
    PyObject *name;      /* str, made at first use of `handle` */
    uint32_t named;      /* 1 + the handle that it is the name of */
    uint32_t handle;     /* that this process listens under */
    uint64_t redeliver;  /* entries of dead readers that this process inherited */
    uint64_t taken;      /* entries that it took itself and has not released */
    bool listens;
} mailbox_view;

typedef struct {
    PyObject_HEAD
    cv_port port;
    bool mapped; /* the run is; perhaps to be looked at only */
    bool open;   /* and it is the process of a slot */
    bool reads;  /* it is a Reader: nothing is mapped that it could write to, and no arena */
    bool spinning;
    int mail_fd, arena_fds[CV_SLOTS_MAX];
    mailbox_view *views;              /* by mailbox */
    PyObject *type_cache[TYPE_CACHE]; /* str of recent message types, by a hash of their bytes */
    PyObject *closed_error;           /* civitas_shm.errors.TransportClosed */
    PyObject *closed_text;            /* what it says; NULL: nobody told this process why it left */
    PyObject *pending;                /* dict: correlation -> future of an ask of this process; see bind */
    PyObject *wake;                   /* called when an ask is posted while the process is parked */
    PyObject *forgetful;              /* called with a mailbox whose handler sent more than is remembered */
    PyObject *stranger;               /* called with a reply that nobody waits for; what it wants is its affair */
    PyObject *done, *set_result;      /* names of the future's methods */
} PortObject;

/* Between enter and close. False: TransportClosed is set. */
static inline bool is_open(PortObject *self) {
    if (self->open) return true;
    if (self->closed_text) PyErr_SetObject(self->closed_error, self->closed_text);
    else if (self->mapped) PyErr_SetString(self->closed_error, "This process has no slot of the run yet.");
    else PyErr_SetString(self->closed_error,
                    "This process has left the run (stopped, or a forked child): nothing can be sent or received here.");
    return false;
}

/* --- arguments ---------------------------------------------------------------------------------------------------- */

static inline bool as_u32(PyObject *object, const char *what, uint32_t *out) {
    unsigned long value = PyLong_AsUnsignedLong(object);
    if (value == (unsigned long)-1 && PyErr_Occurred()) return false;
    if (value > UINT32_MAX) {
        PyErr_Format(PyExc_OverflowError, "%s does not fit 32 bits: %lu", what, value);
        return false;
    }
    *out = (uint32_t)value;
    return true;
}
static inline bool as_u64(PyObject *object, uint64_t *out) {
    *out = PyLong_AsUnsignedLongLong(object);
    return !(*out == (uint64_t)-1 && PyErr_Occurred());
}
static inline bool count_is(Py_ssize_t n, Py_ssize_t least, Py_ssize_t most, const char *name) {
    if (n >= least && n <= most) return true;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd to %zd arguments, %zd given", name, least, most, n);
    return false;
}
/* A handle as an index. One whose mailbox is another agent's by now becomes NO_MAILBOX, as which nothing is found. */
#define NO_MAILBOX (UINT32_MAX - 1)
static inline bool as_mailbox(PortObject *self, PyObject *object, uint32_t *index) {
    uint32_t handle;
    if (!as_u32(object, "mailbox", &handle)) return false;
    *index = cv_index(handle);
    if (*index < cv_records(&self->port.run) && !cv_is_current(&self->port.run, handle)) *index = NO_MAILBOX;
    return true;
}
/* As the mailbox of a post, which is compared with the record where it is published. */
static inline bool as_recipient(PyObject *object, port_post *post) {
    uint32_t handle;
    if (!as_u32(object, "mailbox", &handle)) return false;
    post->mailbox = cv_index(handle);
    post->reuse = cv_reuse(handle);
    return true;
}

/* A mailbox that exists. NULL: its header is damaged (then nothing can be had from it), or, with an exception set, there
 * is none of that number. */
static inline cv_mailbox *mailbox_at(PortObject *self, uint32_t mailbox) {
    cv_mailbox *m = cv_mailbox_at(&self->port.run, mailbox);
    if (!m && mailbox != NO_MAILBOX && mailbox >= cv_records(&self->port.run)) PyErr_SetString(PyExc_IndexError, "no mailbox of that number");
    return m;
}

/* --- the methods of a Port, each once: PORT_FAST(name) takes an array of arguments, PORT_PLAIN(name) none ------------- */

#define PORT_METHODS(PORT_FAST, PORT_PLAIN)                                                              \
    PORT_FAST(post) PORT_FAST(post_ask) PORT_FAST(post_reply) PORT_PLAIN(new_correlation) /* sending */    \
    PORT_FAST(take) PORT_FAST(release) PORT_FAST(listen) PORT_FAST(poll)                /* receiving */  \
    PORT_FAST(bind) PORT_FAST(want_room) PORT_PLAIN(unpark)                                              \
    PORT_FAST(begin) PORT_FAST(forgo) PORT_FAST(strike) PORT_FAST(bury)                 /* burials */    \
    PORT_FAST(judge) PORT_FAST(discard) PORT_FAST(read) PORT_PLAIN(buried) PORT_FAST(repost)             \
    PORT_FAST(fire) PORT_FAST(was_sent) PORT_PLAIN(next_number)                         /* delays */     \
    PORT_FAST(commit_state) PORT_FAST(stored_state) PORT_FAST(state_elsewhere)            /* state */      \
    PORT_PLAIN(records) PORT_FAST(record) PORT_FAST(stats) PORT_FAST(in_hand)           /* looking */    \
    PORT_PLAIN(memory) PORT_FAST(trim) PORT_FAST(note_suspended)                                         \
    PORT_FAST(note_wait) PORT_FAST(clear_wait) PORT_PLAIN(waits)                        /* watching */   \
    PORT_FAST(probe) PORT_FAST(probe_open) PORT_PLAIN(held)                                              \
    PORT_FAST(find) PORT_FAST(mailboxes) PORT_FAST(retire) PORT_FAST(reopen)                             \
    PORT_FAST(add_mailbox) PORT_FAST(set_readers) PORT_FAST(close_lanes)                /* host */       \
    PORT_FAST(begin_life) PORT_PLAIN(last_incarnation)                                                   \
    PORT_FAST(set_slot) PORT_FAST(slot) PORT_FAST(recover) PORT_PLAIN(ring_all) PORT_PLAIN(safety_poll)  \
    PORT_FAST(enter) PORT_FAST(close) PORT_PLAIN(detach)                                /* life */

#define PORT_FAST(name) PyObject *port_##name##_py(PyObject *object, PyObject *const *args, Py_ssize_t n);
#define PORT_PLAIN(name) PyObject *port_##name##_py(PyObject *object, PyObject *unused);
PORT_METHODS(PORT_FAST, PORT_PLAIN)
#undef PORT_FAST
#undef PORT_PLAIN

/* --- the methods of a Reader: those of a Port that write nothing, under the same names, and its own ---------------------- */

#define READER_METHODS(PORT_FAST, PORT_PLAIN, READER_FAST, READER_PLAIN)                                       \
    PORT_PLAIN(records) PORT_FAST(record) PORT_FAST(stats) PORT_FAST(find) PORT_FAST(mailboxes) PORT_PLAIN(waits) \
    PORT_FAST(slot) PORT_FAST(probe_open)                                                                      \
    READER_FAST(peek) READER_FAST(life) READER_PLAIN(close)

PyObject *reader_peek_py(PyObject *object, PyObject *const *args, Py_ssize_t n);
PyObject *reader_life_py(PyObject *object, PyObject *const *args, Py_ssize_t n);
PyObject *reader_close_py(PyObject *object, PyObject *unused);

/* --- _shm_process.c ------------------------------------------------------------------------------------------------- */

PyObject *module_keep_memory(PyObject *module, PyObject *unused);
PyObject *module_fork_away(PyObject *module, PyObject *unused);

/* --- _shm_life.c ---------------------------------------------------------------------------------------------------- */

/* Port(directory_fd, cells_fd, mail_fd, arena_fds, door_fds[, slot, incarnation]) */
PyObject *port_new(PyTypeObject *type, PyObject *args, PyObject *kwargs);
/* Reader(directory_fd, cells_fd, mail_fd, arena_fds); the descriptors of the arenas stay the caller's, and open */
PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs);
void port_dealloc(PyObject *object);

/* --- _shm_values.c -------------------------------------------------------------------------------------------------- */

/* The 128 bytes of a header, copied; None leaves *present false. False: an exception is set. */
bool as_header(PyObject *object, cv_header *h, bool *present);
/* New references, or NULL with an exception; bytes in shared memory may change under us, so both decode private copies. */
PyObject *name_of(PortObject *self, uint32_t mailbox);
PyObject *type_of(PortObject *self, const uint8_t *at, size_t size);
void type_and_sender(PortObject *self, const mb_message *m, PyObject **type, PyObject **sender);
/* A sequence of slots as a set, and back as a list; what is beyond the slots of the run is an IndexError, or left out. */
bool as_slots(PortObject *self, PyObject *sequence, cv_set *out);
PyObject *slots_of(PortObject *self, cv_set set);
/* An outcome of a post as an int; PORT_UNKNOWN as an IndexError. */
PyObject *outcome(int rc);

#endif
