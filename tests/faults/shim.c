/* Preloaded into the service: makes calls on files below a directory fail, and records them.
 *
 * FAULTS_DIRECTORY  the directory whose files are meant
 * FAULTS_CONTROL    a file of 64-bit integers, mapped and shared with the test; see shim.py
 * FAULTS_TRACE      a file to which every change and every response is appended; may be missing
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE, SYNC, DIRSYNC, OPEN, RENAME, UNLINK, TRUNCATE, OPERATIONS };
enum { SKIP, TIMES, OUTCOME, ARGUMENT, HITS, CALLS, SLOTS };
enum { SHORT = -1, STALL = -2, TORN = -3, NO_MEMORY = -4 };
/* Milliseconds after which a stall checks whether it shall end. */
#define STEP_MS 10
#define CLOCK_SECONDS (OPERATIONS * SLOTS)
#define KNOWN_FILES 65536
#define DURABLE (CLOCK_SECONDS + 1)
#define FAILURES (DURABLE + KNOWN_FILES)
#define SYNCS (FAILURES + KNOWN_FILES)
#define LOCK (SYNCS + KNOWN_FILES)
#define CONTROL_BYTES ((LOCK + 1) * 8)

static int64_t *control;
static const char *directory;
static size_t directory_length;
/* It is opened for each record: a process that closes what it inherited would close it too. */
static const char *trace;
/* By inode, and shared by all processes: one more than the bytes of the file that are on the disk, 0 if
 * unknown; the number of its failed syncs; and of those that wrote its pages. */
static int64_t *durable, *failures, *syncs;
/* The failures that this process was told of: each one that has the file open is told once. */
static int64_t told[KNOWN_FILES];

/* The launcher loads this before the variables are known, and calls it again in its forks. */
__attribute__((constructor)) void start_faults(void) {
    directory = getenv("FAULTS_DIRECTORY");
    const char *path = getenv("FAULTS_CONTROL");
    if (!directory || !path) return;
    directory_length = strlen(directory);
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) abort();
    void *memory = mmap(NULL, CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) abort();
    syscall(SYS_close, fd);
    trace = getenv("FAULTS_TRACE");
    control = memory;
    durable = control + DURABLE;
    failures = control + FAILURES;
    syncs = control + SYNCS;
}

static int is_ours(const char *path) {
    return control && path && !strncmp(path, directory, directory_length);
}

static int is_ours_fd(int fd) {
    if (!control) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_ours(path);
}

/* Count a call and return what becomes of it: 0, an errno, SHORT or STALL (already waited for). */
static int64_t fault(int operation) {
    int saved = errno;
    int64_t *slot = control + operation * SLOTS;
    __atomic_add_fetch(slot + CALLS, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(slot + TIMES, __ATOMIC_SEQ_CST) <= 0) return 0;
    if (__atomic_sub_fetch(slot + SKIP, 1, __ATOMIC_SEQ_CST) >= 0) return 0;
    if (__atomic_sub_fetch(slot + TIMES, 1, __ATOMIC_SEQ_CST) < 0) return 0;
    __atomic_add_fetch(slot + HITS, 1, __ATOMIC_SEQ_CST);
    int64_t outcome = slot[OUTCOME];
    if (outcome == STALL) {
        for (int64_t left = slot[ARGUMENT]; left > 0; left -= STEP_MS) {
            if (__atomic_load_n(slot + OUTCOME, __ATOMIC_SEQ_CST) != STALL) break;
            struct timespec wait = {0, STEP_MS * 1000000};
            while (nanosleep(&wait, &wait) && errno == EINTR) ;
        }
        errno = saved;
        return 0;
    }
    return outcome;
}

static void record(const char *head, const struct iovec *data, int count, size_t bytes) {
    if (!trace) return;
    int saved = errno;
    int fd = syscall(SYS_openat, AT_FDCWD, trace, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    char *buffer = malloc(strlen(head) + bytes);
    size_t end = strlen(head);
    memcpy(buffer, head, end);
    for (int i = 0; i < count && bytes; i++) {
        size_t part = data[i].iov_len < bytes ? data[i].iov_len : bytes;
        memcpy(buffer + end, data[i].iov_base, part);
        end += part;
        bytes -= part;
    }
    if (syscall(SYS_write, fd, buffer, end) != (long)end) abort();
    syscall(SYS_close, fd);
    free(buffer);
    errno = saved;
}

static uint64_t inode_of(int fd) {
    struct stat status;
    return fstat(fd, &status) ? 0 : status.st_ino;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* The disk was full after the first bytes of a write: the next one says so. */
static __thread int is_full;

/* There is no memory for what a write left over; what Python keeps at hand is smaller. Of a model
 * that takes no memory itself. */
static __thread int is_out_of_memory __attribute__((tls_model("initial-exec")));
#define SMALLEST_BYTES 513

extern void *__libc_malloc(size_t size);

void *malloc(size_t size) {
    if (!is_out_of_memory || size < SMALLEST_BYTES) return __libc_malloc(size);
    is_out_of_memory = 0;
    errno = ENOMEM;
    return NULL;
}

/* What this process wrote at offsets of its choice, as a database does, and has not synced. A later sync
 * of another process writes these pages too: then `syncs` has another value than before the write. */
struct range {
    uint64_t inode;
    int64_t start, end, syncs;
};
static struct range *unsynced;
static size_t unsynced_count, unsynced_room;
static int unsynced_lock;

static void lock_unsynced(void) {
    while (__atomic_exchange_n(&unsynced_lock, 1, __ATOMIC_SEQ_CST)) sched_yield();
}

static void unlock_unsynced(void) {
    __atomic_store_n(&unsynced_lock, 0, __ATOMIC_SEQ_CST);
}

static void note_unsynced(uint64_t inode, int64_t start, int64_t end, int64_t before) {
    lock_unsynced();
    if (unsynced_count == unsynced_room) {
        unsynced_room = unsynced_room ? 2 * unsynced_room : 1024;
        unsynced = realloc(unsynced, unsynced_room * sizeof *unsynced);
        if (!unsynced) abort();
    }
    unsynced[unsynced_count++] = (struct range){inode, start, end, before};
    unlock_unsynced();
}

/* Without an offset, the data goes to where the file's position is. */
static ssize_t do_write(int fd, const struct iovec *data, int count, int64_t offset) {
    int64_t outcome = is_full ? ENOSPC : fault(WRITE);
    is_full = outcome == TORN;
    is_out_of_memory = 0;
    if (outcome > 0) {
        errno = outcome;
        return -1;
    }
    struct iovec part;
    if (outcome == SHORT || outcome == TORN || outcome == NO_MEMORY) {
        size_t most = control[WRITE * SLOTS + ARGUMENT];
        part = data[0];
        if (part.iov_len > most) part.iov_len = most;
        data = &part;
        count = 1;
    }
    uint64_t inode = inode_of(fd);
    int64_t before = syncs[inode % KNOWN_FILES];
    ssize_t written = offset < 0 ? syscall(SYS_writev, fd, data, count)
                                 : syscall(SYS_pwritev, fd, data, count, offset, 0);
    if (written > 0) {
        if (offset >= 0) note_unsynced(inode, offset, offset + written, before);
        /* Others may append to it as well: what the file's size says is not where this went. */
        else offset = lseek(fd, 0, SEEK_CUR) - written;
        char head[96];
        snprintf(head, sizeof head, "W %lu %ld %zd\n", inode, offset, written);
        record(head, data, count, written);
    }
    is_out_of_memory = outcome == NO_MEMORY;
    return written;
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    struct iovec one = {(void *)data, size};
    return is_ours_fd(fd) ? do_write(fd, &one, 1, -1) : real(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    REAL(pwrite64);
    struct iovec one = {(void *)data, size};
    return is_ours_fd(fd) ? do_write(fd, &one, 1, offset) : real(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    return pwrite64(fd, data, size, offset);
}

ssize_t writev(int fd, const struct iovec *data, int count) {
    REAL(writev);
    return is_ours_fd(fd) ? do_write(fd, data, count, -1) : real(fd, data, count);
}

static void zero(int fd, uint64_t inode, int64_t position, int64_t end) {
    char head[96];
    static const char zeros[65536];
    while (position < end) {
        size_t step = end - position < 65536 ? end - position : 65536;
        if (syscall(SYS_pwrite64, fd, zeros, step, position) <= 0) break;
        struct iovec lost = {(void *)zeros, step};
        snprintf(head, sizeof head, "W %lu %ld %zd\n", inode, position, step);
        record(head, &lost, 1, step);
        position += step;
    }
}

/* Forget the unsynced ranges of a file; after a failed sync, they are lost up to the file's size. */
static void settle(uint64_t inode, int fd, int64_t size) {
    size_t kept = 0;
    lock_unsynced();
    for (size_t i = 0; i < unsynced_count; i++) {
        struct range range = unsynced[i];
        if (range.inode != inode) unsynced[kept++] = range;
        else if (fd >= 0 && range.syncs == syncs[inode % KNOWN_FILES])
            zero(fd, inode, range.start, range.end < size ? range.end : size);
    }
    unsynced_count = kept;
    unlock_unsynced();
}

/* A failed sync loses the pages and marks them clean, as Linux does: they read as zeros. */
static void lose_pages(int fd, uint64_t inode, int64_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int own = syscall(SYS_openat, AT_FDCWD, link, O_WRONLY | O_CLOEXEC, 0);
    if (own < 0) return;
    int64_t position = durable[inode % KNOWN_FILES] - 1;
    if (position >= 0) zero(own, inode, position, size);
    settle(inode, own, size);
    syscall(SYS_close, own);
}

/* One process at a time makes files, and says what of them is on the disk; one that was killed keeps
 * nobody. */
static void lock(void) {
    for (int i = 0; i < 1000 && __atomic_exchange_n(control + LOCK, 1, __ATOMIC_SEQ_CST); i++)
        sched_yield();
}

static void unlock(void) {
    __atomic_store_n(control + LOCK, 0, __ATOMIC_SEQ_CST);
}

static int do_sync(int fd, int number) {
    struct stat status;
    is_out_of_memory = 0;
    if (fstat(fd, &status)) return -1;
    int is_directory = S_ISDIR(status.st_mode);
    int64_t outcome = fault(is_directory ? DIRSYNC : SYNC);
    int64_t place = status.st_ino % KNOWN_FILES;
    if (outcome > 0) {
        lock();
        if (!is_directory) {
            failures[place]++;
            fstat(fd, &status);
            lose_pages(fd, status.st_ino, status.st_size);
        }
    }
    int result = outcome > 0 ? -1 : syscall(number, fd);
    if (outcome <= 0) lock();
    if (!is_directory && !result) {
        syncs[place]++;
        settle(status.st_ino, -1, 0);
    }
    if (!is_directory && !result && told[place] != failures[place]) {
        result = -1;
        outcome = EIO; /* another process's sync lost its pages, which may be this one's */
    }
    if (!is_directory) told[place] = failures[place];
    if (!result) {
        char head[64];
        snprintf(head, sizeof head, "%c %lu\n", is_directory ? 'D' : 'Y', status.st_ino);
        record(head, NULL, 0, 0);
        if (!is_directory && durable[place] && durable[place] <= status.st_size)
            durable[place] = status.st_size + 1;
    }
    unlock();
    if (outcome > 0) errno = outcome;
    return result;
}

int fsync(int fd) {
    REAL(fsync);
    return is_ours_fd(fd) ? do_sync(fd, SYS_fsync) : real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    return is_ours_fd(fd) ? do_sync(fd, SYS_fdatasync) : real(fd);
}

static int do_open(const char *path, int flags, mode_t mode) {
    int ours = is_ours(path) && (flags & O_CREAT);
    int64_t outcome = ours ? fault(OPEN) : 0;
    if (outcome > 0) {
        errno = outcome;
        return -1;
    }
    if (!is_ours(path)) return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    lock(); /* nobody opens a file, and writes to it, before it is recorded that it was made */
    int fd = syscall(SYS_openat, AT_FDCWD, path, ours ? flags | O_EXCL : flags, mode);
    if (fd < 0 && ours && errno == EEXIST && !(flags & O_EXCL)) {
        ours = 0; /* it is there already */
        fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    }
    int error = errno;
    if (fd >= 0) {
        char head[PATH_MAX + 64];
        uint64_t inode = inode_of(fd);
        told[inode % KNOWN_FILES] = failures[inode % KNOWN_FILES];
        if (ours) {
            durable[inode % KNOWN_FILES] = 1;
            snprintf(head, sizeof head, "C %lu %s\n", inode, path);
            record(head, NULL, 0, 0);
        }
    }
    unlock();
    errno = error;
    return fd;
}

#define OPEN_FUNCTION(name) \
    int name(const char *path, int flags, ...) { \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
        va_end(list); \
        return do_open(path, flags, mode); \
    }
OPEN_FUNCTION(open)
OPEN_FUNCTION(open64)

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    int ours = is_ours(from);
    int64_t outcome = ours ? fault(RENAME) : 0;
    if (outcome > 0) {
        errno = outcome;
        return -1;
    }
    int result = syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
    char head[2 * PATH_MAX + 8];
    snprintf(head, sizeof head, "R %s %s\n", from, to);
    if (!result && ours) record(head, NULL, 0, 0);
    return result;
}

int rename(const char *from, const char *to) {
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlink(const char *path) {
    REAL(unlink);
    if (!is_ours(path)) return real(path);
    int64_t outcome = fault(UNLINK);
    if (outcome > 0) {
        errno = outcome;
        return -1;
    }
    int result = real(path);
    char head[PATH_MAX + 8];
    snprintf(head, sizeof head, "U %s\n", path);
    if (!result) record(head, NULL, 0, 0);
    return result;
}

static int do_truncate(int fd, off_t size) {
    int64_t outcome = fault(TRUNCATE);
    if (outcome > 0) {
        errno = outcome;
        return -1;
    }
    int result = syscall(SYS_ftruncate, fd, size);
    if (!result) {
        char head[64];
        uint64_t inode = inode_of(fd);
        snprintf(head, sizeof head, "T %lu %ld\n", inode, size);
        record(head, NULL, 0, 0);
        int64_t *known = durable + inode % KNOWN_FILES;
        if (*known > size + 1) *known = size + 1;
    }
    return result;
}

int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    return is_ours_fd(fd) ? do_truncate(fd, size) : real(fd, size);
}

int ftruncate64(int fd, off_t size) {
    REAL(ftruncate64);
    return is_ours_fd(fd) ? do_truncate(fd, size) : real(fd, size);
}

/* A response is recorded before its first byte leaves: what it acknowledges must be durable. */
ssize_t send(int fd, const void *data, size_t size, int flags) {
    REAL(send);
    if (trace && size > 12 && !memcmp(data, "HTTP/1.1 ", 9)) {
        struct sockaddr_in peer = {0};
        socklen_t length = sizeof peer;
        if (!getpeername(fd, (struct sockaddr *)&peer, &length)) {
            char head[64];
            snprintf(head, sizeof head, "S %d %.3s\n", ntohs(peer.sin_port), (char *)data + 9);
            record(head, NULL, 0, 0);
        }
    }
    return real(fd, data, size, flags);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int result = real(clock, now);
    if (control && clock == CLOCK_REALTIME) now->tv_sec += control[CLOCK_SECONDS];
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(gettimeofday);
    int result = real(now, zone);
    if (control) now->tv_sec += control[CLOCK_SECONDS];
    return result;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}
