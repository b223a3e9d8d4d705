// Client and server of TCP connections in one process, and what makes it hard to see what they say:
// calls whose bytes the tap cannot read, memory that is gone when it looks, two threads at once.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, UPLOAD = 32 * PAGE, MAX_FAULTY = 10000, AT_ONCE = 3000, AT_ONCE_SECONDS = 2 };

static const char *OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
static int listener, client, server;
static char room[UPLOAD];

static void check(int holds, const char *what)
{
    if (!holds) {
        perror(what);
        exit(1);
    }
}

static void open_pair(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    if (!listener) {
        listener = socket(AF_INET, SOCK_STREAM, 0);
        check(!bind(listener, (void *)&address, len) && !listen(listener, 8), "listen");
    }
    check(!getsockname(listener, (void *)&address, &len), "getsockname");
    client = socket(AF_INET, SOCK_STREAM, 0);
    check(!connect(client, (void *)&address, len), "connect");
    server = accept(listener, 0, 0);
}

static void close_pair(void)
{
    // With a reset: no port has to wait.
    struct linger at_once = {.l_onoff = 1};
    setsockopt(client, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(client);
    close(server);
}

static void put(int fd, const char *text)
{
    check(send(fd, text, strlen(text), 0) == (ssize_t)strlen(text), "send");
}

static void take(int fd, const char *text)
{
    size_t len = strlen(text);
    check(recv(fd, room, len, MSG_WAITALL) == (ssize_t)len, "recv");
}

static void answer(const char *request)
{
    take(server, request);
    put(server, OK);
    take(client, OK);
}

// Sends by io_uring: within its system call, or by one of its own threads.
static void put_by_ring(const char *text, unsigned flags)
{
    struct io_uring_params parameters = {0};
    int ring = syscall(SYS_io_uring_setup, 1, &parameters);
    check(ring >= 0, "io_uring");
    struct io_uring_sqe *entry =
        mmap(0, sizeof *entry, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    size_t len = parameters.sq_off.array + sizeof(unsigned);
    char *queue = mmap(0, len, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    check(entry != MAP_FAILED && queue != MAP_FAILED, "io_uring's memory");
    *entry = (struct io_uring_sqe){.opcode = IORING_OP_SEND,
                                   .flags = flags,
                                   .fd = client,
                                   .addr = (unsigned long)text,
                                   .len = strlen(text)};
    *(unsigned *)(queue + parameters.sq_off.array) = 0;
    atomic_store((atomic_uint *)(queue + parameters.sq_off.tail), 1);
    check(syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) == 1, "a send");
    munmap(queue, len);
    munmap(entry, sizeof *entry);
    close(ring);
}

static char *shared;
static volatile sig_atomic_t stop;

static void enough(int signal)
{
    (void)signal;
    stop = 1;
}

static cpu_set_t processors;

// Keeps the calling thread to the first processor, or to the second.
static void stay_on(int which)
{
    cpu_set_t one;
    int cpu = 0;
    while (!CPU_ISSET(cpu, &processors) || which-- > 0)
        cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    check(!pthread_setaffinity_np(pthread_self(), sizeof one, &one), "sched_setaffinity");
}

static void *unmap(void *none)
{
    stay_on(1);
    while (!stop)
        madvise(shared, PAGE, MADV_DONTNEED);
    return none;
}

// The kernel brings the page back for the copy; while it copies the rest, the other thread takes it
// away again, so that it is gone when the tap looks, if both run at that time. It belongs to a file,
// so that its bytes stay what they are. Until SIGUSR1; says how many exchanges that were.
static void faults(void)
{
    int file = memfd_create("pages", 0), more = 4 << 20;
    check(!ftruncate(file, UPLOAD), "ftruncate");
    shared = mmap(0, UPLOAD, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    int head = sprintf(shared, "POST /faulty HTTP/1.1\r\nX-Length: %06d\r\n", UPLOAD);
    head += sprintf(shared + head, "Content-Length: %06d\r\n\r\n", UPLOAD - head - 26);
    check(!sched_getaffinity(0, sizeof processors, &processors), "sched_getaffinity");
    check(CPU_COUNT(&processors) > 1, "a second processor");
    pthread_t thread;
    check(!pthread_create(&thread, 0, unmap, 0), "pthread_create");
    stay_on(0);
    open_pair();
    setsockopt(client, SOL_SOCKET, SO_SNDBUF, &more, sizeof more);
    setsockopt(server, SOL_SOCKET, SO_RCVBUF, &more, sizeof more);
    int exchanges = 0;
    for (; !stop && exchanges < MAX_FAULTY; exchanges++) {
        check(send(client, shared, UPLOAD, 0) == UPLOAD, "send");
        check(recv(server, room, UPLOAD, MSG_WAITALL) == UPLOAD, "recv");
        put(server, OK);
        take(client, OK);
        usleep(1000);
    }
    close_pair();
    stop = 1;
    printf("faulty: %d\n", exchanges);
    pthread_join(thread, 0);
    pthread_setaffinity_np(pthread_self(), sizeof processors, &processors);
}

static const char *AT_ONCE_REQUEST = "GET /at-once HTTP/1.1\r\n\r\n";
static atomic_int turn;

static long now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000 + now.tv_nsec;
}

// Odd turns are the receiver's. To send takes longer than to receive, it is not known by how much.
static void *receive(void *none)
{
    for (int i = 1;; i += 2) {
        while (atomic_load(&turn) != i)
            sched_yield();
        long begin = now_ns() + i / 2 % 100 * 200;
        while (now_ns() < begin)
            ;
        take(client, OK);
        atomic_store(&turn, i + 1);
    }
    return none;
}

// The answer lies ready, so that the connection's first two calls are made by two threads at the
// same time, on two processors. Says how many connections that were.
static void at_once(void)
{
    pthread_t thread;
    time_t end = time(0) + AT_ONCE_SECONDS;
    int connections = 0;
    check(!pthread_create(&thread, 0, receive, 0), "pthread_create");
    for (; connections < AT_ONCE && time(0) <= end; connections++) {
        open_pair();
        put(server, OK);
        atomic_fetch_add(&turn, 1);
        put(client, AT_ONCE_REQUEST);
        while (atomic_load(&turn) % 2)
            sched_yield();
        take(server, AT_ONCE_REQUEST);
        close_pair();
        if (connections % 20 == 0)
            usleep(1000);
    }
    printf("at once: %d\n", connections);
}

int main(void)
{
    const char *within = "GET /within HTTP/1.1\r\n\r\n", *aside = "GET /aside HTTP/1.1\r\n\r\n";
    signal(SIGUSR1, enough);
    open_pair();
    put_by_ring(within, 0);
    answer(within);
    put_by_ring(aside, IOSQE_ASYNC);
    answer(aside);
    close_pair();
    faults();
    at_once();
    puts("done");
    fflush(stdout);
    pause();
}
