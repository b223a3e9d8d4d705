/* Stacks that are hard to follow:
 *
 *     ./stacks signal      a handler on a stack of its own, above 61 nested calls
 *     ./stacks deep N      N + 1 nested calls
 *     ./stacks sort        a function that the C library calls back
 *     ./stacks exec        after a second and a half, itself anew, with 61 nested calls
 *     ./stacks load FILE   after a second, 21 nested calls in a library
 *     ./stacks wild        code that nothing describes, called from no address
 *
 * Prints "ready" when it has begun; runs for two minutes at most. */
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile unsigned long long sink;

__attribute__((noinline)) void in_handler(int depth)
{
	if (depth)
		in_handler(depth - 1);
	else
		for (int i = 0; i < 10000000; i++)
			sink += i;
	/* Work after the call keeps it from being a jump. */
	__asm__ volatile("");
}

static void handler(int number)
{
	in_handler(5);
	__asm__ volatile("" : : "r"(number));
}

__attribute__((noinline)) void nested(int depth)
{
	if (depth)
		nested(depth - 1);
	else
		for (;;)
			sink++;
	__asm__ volatile("");
}

/* Without call frame information there is the frame pointer alone, and it leads to a return address
 * that is none: bits 62 and 48 and some lower ones. */
__asm__(".pushsection .text\n"
	"wild:\n"
	"	movabs $0x4001000000001234, %rax\n"
	"	push %rax\n"
	"	push %rbp\n"
	"	mov %rsp, %rbp\n"
	"1:	jmp 1b\n"
	".popsection\n");
extern void wild(void);

static int compare(const void *one, const void *other)
{
	for (int i = 0; i < 100000; i++)
		sink += i;
	return *(const int *)one - *(const int *)other;
}

__attribute__((noinline)) void sort(void)
{
	int values[64];
	for (int i = 0; i < 64; i++)
		values[i] = rand();
	qsort(values, 64, sizeof values[0], compare);
	__asm__ volatile("");
}

static void spin_for(double seconds)
{
	struct timespec now;
	double end = 0;
	do {
		clock_gettime(CLOCK_MONOTONIC, &now);
		double time = now.tv_sec + now.tv_nsec / 1e9;
		if (end == 0)
			end = time + seconds;
		seconds = end - time;
	} while (seconds > 0);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	alarm(120);
	puts("ready");
	fflush(stdout);
	if (!strcmp(what, "signal")) {
		static char other[65536];
		stack_t stack = {.ss_sp = other, .ss_size = sizeof other};
		sigaltstack(&stack, NULL);
		struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
		sigaction(SIGPROF, &action, NULL);
		struct itimerval timer = {{0, 40000}, {0, 40000}};
		setitimer(ITIMER_PROF, &timer, NULL);
		nested(60);
	} else if (!strcmp(what, "deep") && argc > 2) {
		nested(atoi(argv[2]));
	} else if (!strcmp(what, "wild")) {
		wild();
	} else if (!strcmp(what, "sort")) {
		for (;;)
			sort();
	} else if (!strcmp(what, "exec")) {
		spin_for(1.5);
		execl("/proc/self/exe", argv[0], "deep", "60", NULL);
	} else if (!strcmp(what, "load") && argc > 2) {
		spin_for(1);
		void *library = dlopen(argv[2], RTLD_NOW);
		void (*late)(int) = library ? (void (*)(int))dlsym(library, "late") : NULL;
		if (late)
			late(20);
	}
	return 1;
}
