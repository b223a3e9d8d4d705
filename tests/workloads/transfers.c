// Client and server of one TCP connection in one thread, and every call that moves bytes through a
// socket. Each case has a path of its own; the test knows what belongs to it.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif
#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY 0x4000000
#endif

enum { BODY = 200000, MANY = 3, DEEP = 64 };

static int listener, client, server;
static char big[1 << 20];

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
    int room = 4 << 20;
    client = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(client, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    setsockopt(client, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    check(!connect(client, (void *)&address, len), "connect");
    server = accept(listener, 0, 0);
    setsockopt(server, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    setsockopt(server, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
}

static void close_pair(void)
{
    close(client);
    close(server);
}

static void put(int fd, const char *text)
{
    check(send(fd, text, strlen(text), 0) == (ssize_t)strlen(text), "send");
}

// Waits until `len` bytes are there, so that one call takes them.
static void await(int fd, size_t len)
{
    for (int tries = 0; tries < 5000; tries++) {
        ssize_t there = recv(fd, big, sizeof big, MSG_PEEK | MSG_DONTWAIT);
        if (there >= (ssize_t)len)
            return;
        usleep(1000);
    }
    check(0, "await");
}

static void take(int fd, size_t len)
{
    await(fd, len < sizeof big ? len : sizeof big);
    check(recv(fd, big, len, MSG_WAITALL) == (ssize_t)len, "recv");
}

// Reads a head in one call.
static void take_head(int fd)
{
    for (int tries = 0; tries < 5000; tries++) {
        ssize_t there = recv(fd, big, sizeof big, MSG_PEEK);
        char *end = there > 0 ? memmem(big, there, "\r\n\r\n", 4) : 0;
        if (end) {
            recv(fd, big, end + 4 - big, 0);
            return;
        }
    }
    check(0, "a head");
}

static const char *OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

static void answer(const char *text)
{
    put(server, text);
    take(client, strlen(text));
}

// Head of an exchange with a body of BODY bytes, one way or the other.
static void put_head(int fd, const char *format, const char *path)
{
    char head[256];
    snprintf(head, sizeof head, format, path, BODY);
    put(fd, head);
}
#define UPLOAD "POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
#define DOWNLOAD "HTTP/1.1 200 %s\r\nContent-Length: %d\r\n\r\n"

// Each message of two pieces, the first below eight bytes.
static void send_messages(int fd, char *texts[], int count)
{
    struct mmsghdr messages[MANY] = {0};
    struct iovec pieces[MANY][2];
    for (int i = 0; i < count; i++) {
        pieces[i][0] = (struct iovec){texts[i], 3};
        pieces[i][1] = (struct iovec){texts[i] + 3, strlen(texts[i]) - 3};
        messages[i].msg_hdr.msg_iov = pieces[i];
        messages[i].msg_hdr.msg_iovlen = 2;
    }
    check(sendmmsg(fd, messages, count, 0) == count, "sendmmsg");
}

static void receive_messages(int fd, char *texts[], int count)
{
    static char room[MANY][4096];
    struct mmsghdr messages[MANY] = {0};
    struct iovec pieces[MANY];
    size_t all = 0;
    for (int i = 0; i < count; i++) {
        pieces[i] = (struct iovec){room[i], strlen(texts[i])};
        messages[i].msg_hdr.msg_iov = &pieces[i];
        messages[i].msg_hdr.msg_iovlen = 1;
        all += strlen(texts[i]);
    }
    await(fd, all);
    check(recvmmsg(fd, messages, count, 0, 0) == count, "recvmmsg");
}

static void several_messages(void)
{
    char *requests[MANY] = {
        "GET /messages/one HTTP/1.1\r\n\r\n",
        "POST /messages/two HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        "GET /messages/three HTTP/1.1\r\nAccept: text/plain\r\n\r\n",
    };
    char *answers[MANY] = {
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none",
        "HTTP/1.1 201 Created\r\nContent-Length: 4\r\n\r\ntwo.",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    };
    open_pair();
    send_messages(client, requests, MANY);
    receive_messages(server, requests, MANY);
    send_messages(server, answers, MANY);
    receive_messages(client, answers, MANY);
    close_pair();
}

// The same vector again and again, of which one message is filled: the call ends early each time,
// and the next one begins with the first message again.
static void same_vector(void)
{
    static char room[4][64];
    struct mmsghdr messages[4] = {0};
    struct iovec pieces[4];
    for (int i = 0; i < 4; i++) {
        pieces[i] = (struct iovec){room[i], sizeof room[i]};
        messages[i].msg_hdr.msg_iov = &pieces[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    open_pair();
    for (int round = 0; round < 6; round++) {
        const char *request = "GET /messages/again HTTP/1.1\r\n\r\n";
        put(client, request);
        await(server, strlen(request));
        // Blocks for the first, and takes it that there are no more.
        check(recvmmsg(server, messages, 4, round % 2 ? MSG_DONTWAIT : MSG_WAITFORONE, 0) == 1,
              "recvmmsg");
        memset(room[1], 'x', sizeof room[1]);
        answer(OK);
    }
    close_pair();
}

static void discarded(void)
{
    open_pair();
    put(client, "GET /discarded HTTP/1.1\r\n\r\n");
    take_head(server);
    put_head(server, DOWNLOAD, "OK");
    for (int sent = 0; sent < BODY; sent += 50000)
        check(send(server, big, 50000, 0) == 50000, "send");
    take_head(client);
    for (int left = BODY; left > 0;) {
        ssize_t thrown = recv(client, 0, left, MSG_TRUNC);
        check(thrown > 0, "MSG_TRUNC");
        left -= thrown;
    }
    put(client, "GET /behind-discarded HTTP/1.1\r\n\r\n");
    take_head(server);
    answer(OK);
    close_pair();
}

static void zero_copy(void)
{
    int one = 1;
    open_pair();
    check(!setsockopt(client, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one), "SO_ZEROCOPY");
    put_head(client, UPLOAD, "/zero-copy");
    for (int sent = 0; sent < BODY; sent += 50000)
        check(send(client, big, 50000, MSG_ZEROCOPY) == 50000, "MSG_ZEROCOPY");
    take_head(server);
    take(server, BODY);
    answer(OK);
    close_pair();
}

// Moves `len` bytes of a socket through a pipe to nowhere.
static void splice_away(int fd, size_t len)
{
    int ends[2], nowhere = open("/dev/null", O_WRONLY);
    check(!pipe(ends), "pipe");
    while (len > 0) {
        ssize_t moved = splice(fd, 0, ends[1], 0, len < 60000 ? len : 60000, 0);
        check(moved > 0, "splice from a socket");
        len -= moved;
        while (moved > 0) {
            ssize_t more = splice(ends[0], 0, nowhere, 0, moved, 0);
            check(more > 0, "splice to nowhere");
            moved -= more;
        }
    }
    close(ends[0]);
    close(ends[1]);
    close(nowhere);
}

// Sends BODY bytes out of a pipe; by way of a second one where `by_tee`.
static void splice_out(int fd, int by_tee)
{
    int ends[2], second[2];
    check(!pipe(ends) && !pipe(second), "pipe");
    for (size_t left = BODY; left > 0;) {
        size_t piece = left < 4096 ? left : 4096;
        check(write(ends[1], big, piece) == (ssize_t)piece, "write to a pipe");
        int from = ends[0];
        if (by_tee) {
            check(tee(ends[0], second[1], piece, 0) == (ssize_t)piece, "tee");
            check(read(ends[0], big, piece) == (ssize_t)piece, "read from a pipe");
            from = second[0];
        }
        for (size_t moved = 0; moved < piece;) {
            ssize_t more = splice(from, 0, fd, 0, piece - moved, 0);
            check(more > 0, "splice to a socket");
            moved += more;
        }
        left -= piece;
    }
    close(ends[0]);
    close(ends[1]);
    close(second[0]);
    close(second[1]);
}

static void spliced(void)
{
    open_pair();
    put_head(client, UPLOAD, "/splice/up");
    for (int sent = 0; sent < BODY; sent += 50000)
        check(send(client, big, 50000, 0) == 50000, "send");
    take_head(server);
    splice_away(server, BODY);
    answer(OK);
    put(client, "GET /splice/down HTTP/1.1\r\n\r\n");
    take_head(server);
    put_head(server, DOWNLOAD, "OK");
    splice_out(server, 0);
    take_head(client);
    splice_away(client, BODY);
    put(client, "GET /splice/tee HTTP/1.1\r\n\r\n");
    take_head(server);
    put_head(server, DOWNLOAD, "OK");
    splice_out(server, 1);
    take_head(client);
    take(client, BODY);
    put(client, "GET /splice/last HTTP/1.1\r\n\r\n");
    take_head(server);
    put_head(server, DOWNLOAD, "OK");
    splice_out(server, 0);
    take_head(client);
    // Nothing is read afterwards: the end tells how far it came.
    splice_away(client, BODY);
    close_pair();
}

static void from_file(void)
{
    char name[] = "/tmp/transfers-XXXXXX";
    int file = mkstemp(name);
    unlink(name);
    check(write(file, big, BODY) == BODY, "write");
    open_pair();
    put(client, "GET /sendfile HTTP/1.1\r\n\r\n");
    take_head(server);
    put_head(server, DOWNLOAD, "OK");
    for (off_t at = 0; at < BODY;)
        check(sendfile(server, file, &at, BODY - at) > 0, "sendfile");
    take_head(client);
    take(client, BODY);
    close_pair();
    close(file);
}

// Pieces of three bytes, both ways.
static void small_pieces(void)
{
    char *texts[2] = {"PUT /pieces HTTP/1.1\r\nContent-Length: 4\r\n\r\nfour",
                      "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok"};
    open_pair();
    for (int way = 0; way < 2; way++) {
        struct iovec pieces[20];
        struct msghdr message = {.msg_iov = pieces};
        size_t len = strlen(texts[way]), at = 0;
        pieces[0] = (struct iovec){texts[way], 0};
        for (message.msg_iovlen = 1; at < len; message.msg_iovlen++) {
            size_t piece = message.msg_iovlen < 19 && len - at > 3 ? 3 : len - at;
            pieces[message.msg_iovlen] = (struct iovec){texts[way] + at, piece};
            at += piece;
        }
        check(sendmsg(way ? server : client, &message, 0) == (ssize_t)len, "sendmsg");
        for (size_t i = 0; i < message.msg_iovlen; i++)
            pieces[i].iov_base = big + ((char *)pieces[i].iov_base - texts[way]);
        await(way ? client : server, len);
        check(recvmsg(way ? client : server, &message, 0) == (ssize_t)len, "recvmsg");
    }
    close_pair();
}

// A write that takes a part, and one that takes nothing.
static void partial_writes(void)
{
    enum { LEN = 16 << 20 };
    char head[128], *body = calloc(1, LEN);
    size_t sent = 0, received = 0;
    int refused = 0;
    open_pair();
    snprintf(head, sizeof head, "POST /partial HTTP/1.1\r\nContent-Length: %d\r\n\r\n", LEN);
    put(client, head);
    take_head(server);
    while (received < LEN) {
        for (;;) {
            ssize_t more = send(client, body + sent, LEN - sent, MSG_DONTWAIT);
            if (more <= 0)
                break;
            sent += more;
        }
        refused += sent < LEN && errno == EAGAIN;
        ssize_t more = recv(server, body, LEN, MSG_DONTWAIT);
        if (more > 0)
            received += more;
    }
    check(refused > 0, "EAGAIN");
    answer(OK);
    close_pair();
    free(body);
}

// Requests with heads of 3 KB, all in one call each way; answers alike.
static void deep(void)
{
    size_t len = 0;
    char *all = malloc(sizeof big);
    open_pair();
    for (int i = 0; i < DEEP; i++)
        len += sprintf(all + len, "GET /deep HTTP/1.1\r\nCookie: %03000d\r\n\r\n", i);
    check(send(client, all, len, 0) == (ssize_t)len, "send");
    take(server, len);
    len = 0;
    for (int i = 0; i < DEEP; i++)
        len += sprintf(all + len, "HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n%0900d", i);
    check(send(server, all, len, 0) == (ssize_t)len, "send");
    take(client, len);
    // Short requests, whose number nothing but the first long answer tells.
    for (int i = len = 0; i < DEEP; i++)
        len += sprintf(all + len, "GET /deep/short HTTP/1.1\r\n\r\n");
    close_pair();
    open_pair();
    check(send(client, all, len, 0) == (ssize_t)len, "send");
    take(server, len);
    for (int i = len = 0; i < DEEP; i++)
        len += sprintf(all + len, "HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n%0900d", i);
    check(send(server, all, len, 0) == (ssize_t)len, "send");
    take(client, len);
    close_pair();
    free(all);
}

// Heads of 60 KB in calls of 1,400 bytes.
static void long_head(void)
{
    char *head = malloc(65536);
    int len = sprintf(head, "GET /long-head HTTP/1.1\r\nCookie: %060000d\r\n\r\n", 1);
    open_pair();
    for (int at = 0; at < len; at += 1400)
        check(send(client, head + at, len - at < 1400 ? len - at : 1400, 0) > 0, "send");
    for (int at = 0; at < len;) {
        ssize_t more = recv(server, big, 1400, 0);
        check(more > 0, "recv");
        at += more;
    }
    answer(OK);
    close_pair();
    free(head);
}

// Gives the agent time to learn of a process that came by fork alone, and that ends soon.
static void be_seen(void)
{
    usleep(200000);
}

// Descriptors that are copied, inherited and sent: the socket stays the same.
static void descriptors(void)
{
    open_pair();
    put(client, "GET /copied HTTP/1.1\r\n\r\n");
    int copy = dup(server), original = server;
    take_head(copy);
    server = dup2(original, 100);
    close(original);
    answer(OK);
    close(copy);
    put(client, "GET /inherited HTTP/1.1\r\n\r\n");
    if (fork() == 0) {
        take_head(server);
        put(server, OK);
        be_seen();
        _exit(0);
    }
    take(client, strlen(OK));
    wait(0);
    put(client, "GET /sent HTTP/1.1\r\n\r\n");
    int pair[2];
    check(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
    char byte = 1, control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec piece = {&byte, 1};
    struct msghdr message = {.msg_iov = &piece,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    if (fork() == 0) {
        close(server);
        close(client);
        check(recvmsg(pair[1], &message, 0) == 1, "recvmsg");
        memcpy(&server, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof server);
        take_head(server);
        put(server, OK);
        be_seen();
        _exit(0);
    }
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(rights), &server, sizeof server);
    check(sendmsg(pair[0], &message, 0) == 1, "sendmsg");
    take(client, strlen(OK));
    wait(0);
    close_pair();
    // Numbers that come again at once.
    for (int round = 0; round < 300; round++) {
        open_pair();
        put(client, "GET /reused HTTP/1.1\r\nConnection: close\r\n\r\n");
        take_head(server);
        answer(OK);
        close_pair();
    }
}

// Serves one request in a child that dies in the middle of its answer.
static void killed(void)
{
    open_pair();
    put(client, "GET /killed HTTP/1.1\r\n\r\n");
    if (fork() == 0) {
        close(client);
        take_head(server);
        put(server, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        be_seen();
        raise(9);
    }
    wait(0);
    close(server);
    while (recv(client, big, sizeof big, 0) > 0)
        ;
    close(client);
}

// No HTTP: read until the agent leaves the connection alone, and on.
static void other_protocol(void)
{
    open_pair();
    for (int runs = 0; runs < 20; runs++) {
        check(send(client, "\1\0\0ask", 6, 0) == 6, "send");
        take(server, 6);
        check(send(server, "\2\0\0answer", 9, 0) == 9, "send");
        take(client, 9);
    }
    close_pair();
    // A proxy that passes on what it does not look at.
    open_pair();
    for (int runs = 0; runs < 3; runs++) {
        check(send(client, "\1\0\0ask", 6, 0) == 6, "send");
        splice_away(server, 6);
        check(send(server, "\2\0\0answer", 9, 0) == 9, "send");
        take(client, 9);
    }
    close_pair();
}

int main(void)
{
    several_messages();
    same_vector();
    discarded();
    zero_copy();
    spliced();
    from_file();
    small_pieces();
    partial_writes();
    deep();
    long_head();
    descriptors();
    killed();
    other_protocol();
    puts("done");
    return 0;
}
