import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;

/**
 * Spends CPU time 50, 30 and 20 parts under three methods, each at the bottom of 20 nested calls:
 * {@code java Split.java SECONDS}. What one overshoots its time by, it waits less the next time.
 * Prints "ready" when it has begun.
 */
public final class Split {
    private static final ThreadMXBean THREADS = ManagementFactory.getThreadMXBean();
    private static final long[] OWED_NS = new long[3];
    static int sink;

    static void spin() {
        int sum = sink;
        for (int turn = 0; turn < 20_000; turn++) sum = sum * 31 + (turn ^ sum >>> 7);
        sink = sum;
    }

    static void burn(int who, long ns) {
        OWED_NS[who] += ns;
        long begin = THREADS.getCurrentThreadCpuTime(), used = 0;
        while (used < OWED_NS[who]) {
            spin();
            used = THREADS.getCurrentThreadCpuTime() - begin;
        }
        OWED_NS[who] -= used;
    }

    static int nestFifty(int depth) {
        if (depth > 1) return nestFifty(depth - 1) + 1;
        burn(0, 5_000_000);
        return 0;
    }

    static int nestThirty(int depth) {
        if (depth > 1) return nestThirty(depth - 1) + 1;
        burn(1, 3_000_000);
        return 0;
    }

    static int nestTwenty(int depth) {
        if (depth > 1) return nestTwenty(depth - 1) + 1;
        burn(2, 2_000_000);
        return 0;
    }

    public static void main(String[] arguments) {
        long end = System.nanoTime() + Long.parseLong(arguments[0]) * 1_000_000_000L;
        System.out.println("ready");
        while (System.nanoTime() < end) {
            nestFifty(20);
            nestThirty(20);
            nestTwenty(20);
        }
    }
}
