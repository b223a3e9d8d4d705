/* A library that is loaded while its process is profiled. */
static volatile unsigned long long sink;

__attribute__((noinline)) void late(int depth)
{
	if (depth)
		late(depth - 1);
	else
		for (;;)
			sink++;
	/* Work after the call keeps it from being a jump. */
	__asm__ volatile("");
}
