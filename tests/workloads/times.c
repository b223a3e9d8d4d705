// A server of one connection at a time that takes the time itself: at its read of a request and behind
// its last write of the answer. Each exchange is a line on standard output: path, nanoseconds.
// `times PORT FILE`: /download is that file by sendfile; of other paths the last digit chooses for how
// long the answer is worked on, or waited for. Head and body are two writes.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void check(int holds, const char *what)
{
    if (!holds) {
        perror(what);
        exit(1);
    }
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void work(int fd, int kind)
{
    uint64_t end = now_ns() + 300000;
    switch (kind % 4) {
    case 0:
        return;
    case 1:
        while (now_ns() < end)
            ;
        return;
    case 2:
        usleep(1000);
        return;
    default:
        usleep(5000);
    }
}

static void answer(int fd, const char *path, int file, off_t file_bytes)
{
    char head[128];
    const char *body = "0123456789";
    int is_file = !strcmp(path, "/download");
    off_t len = is_file ? file_bytes : 10;
    if (!is_file)
        work(fd, path[strlen(path) - 1] - '0');
    int head_bytes = sprintf(head, "HTTP/1.1 200 OK\r\nContent-Length: %ld\r\n\r\n", len);
    check(send(fd, head, head_bytes, 0) == head_bytes, "send");
    if (!is_file)
        check(send(fd, body, 10, 0) == 10, "send");
    for (off_t at = 0; is_file && at < len;)
        check(sendfile(fd, file, &at, len - at) > 0, "sendfile");
}

static void serve(int fd, int file, off_t file_bytes)
{
    char request[4096], path[128];
    for (;;) {
        ssize_t len = recv(fd, request, sizeof request - 1, 0);
        uint64_t read_ns = now_ns();
        if (len <= 0)
            return;
        request[len] = 0;
        check(sscanf(request, "GET %127s ", path) == 1, "a request");
        answer(fd, path, file, file_bytes);
        printf("%s %lu\n", path, now_ns() - read_ns);
        fflush(stdout);
    }
}

int main(int count, char *arguments[])
{
    check(count == 3, "times PORT FILE");
    int listener = socket(AF_INET, SOCK_STREAM, 0), file = open(arguments[2], O_RDONLY), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(atoi(arguments[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    off_t file_bytes = lseek(file, 0, SEEK_END);
    check(!bind(listener, (void *)&address, sizeof address) && !listen(listener, 8), "listen");
    for (;;) {
        int fd = accept(listener, 0, 0);
        check(fd >= 0, "accept");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        serve(fd, file, file_bytes);
        close(fd);
    }
}
