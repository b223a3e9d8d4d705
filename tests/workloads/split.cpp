// As split.c, in C++: each function at the bottom ends its turn with an exception, which passes
// through frames with destructors on its way to main.
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <stdexcept>
#include <string>

static long long thread_cpu_ns()
{
	timespec now;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static volatile unsigned long long sink;

struct Turn {
	std::string name;
	~Turn() { sink += name.size(); }
};

static inline __attribute__((always_inline)) void burn(long long &owed_ns)
{
	long long begin = thread_cpu_ns(), used;
	do {
		for (int i = 0; i < 10000; i++)
			sink += i;
		used = thread_cpu_ns() - begin;
	} while (used < owed_ns);
	owed_ns -= used;
}

#define NEST(name, bottom) \
	static long long name##_owed_ns; \
	extern "C" __attribute__((noinline)) void bottom(long long ns) \
	{ \
		name##_owed_ns += ns; \
		burn(name##_owed_ns); \
		throw std::runtime_error(#bottom); \
	} \
	extern "C" __attribute__((noinline)) void name(int depth, long long ns) \
	{ \
		Turn turn{#name " is long enough not to be kept in place"}; \
		if (depth == 0) \
			bottom(ns); \
		else \
			name(depth - 1, ns); \
	} \
	extern "C" __attribute__((noinline)) void top_of_##name(long long ns) \
	{ \
		try { \
			name(DEPTH - 1, ns); \
		} catch (const std::exception &error) { \
			sink += error.what()[0]; \
		} \
	}

NEST(nest_fifty, spend_fifty)
NEST(nest_thirty, spend_thirty)
NEST(nest_twenty, spend_twenty)

int main(int argc, char **argv)
{
	long long end = thread_cpu_ns() + (argc > 1 ? std::atoll(argv[1]) : 10) * 1000000000LL;
	unsigned long long random = 88172645463325252ULL;
	std::puts("ready");
	std::fflush(stdout);
	while (thread_cpu_ns() < end) {
		// Marsaglia's xorshift64.
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		// 5 to 15 ms a tenth: exceptions through 60 frames take some 100 us.
		long long tenth_ns = 5000000 + (long long)(random % 10000000);
		top_of_nest_fifty(5 * tenth_ns);
		top_of_nest_thirty(3 * tenth_ns);
		top_of_nest_twenty(2 * tenth_ns);
	}
}
