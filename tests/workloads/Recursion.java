// Calls from one function to another and back, down to a small one: java Recursion SECONDS
//
// even(2) > odd(1) > even(0) > last(0). Prints "ready" when it has begun.
public final class Recursion {
    private static int last(int n) {
        return (n * 7 + (n >> 3)) ^ (n << 2);
    }

    private static int even(int n) {
        return n == 0 ? last(n) : odd(n - 1) + 1;
    }

    private static int odd(int n) {
        return even(n - 1) + 1;
    }

    public static void main(String[] arguments) {
        long end = System.nanoTime() + 1_000_000_000L * Long.parseLong(arguments[0]);
        System.out.println("ready");
        int sum = 0;
        while (System.nanoTime() < end) {
            for (int turn = 0; turn < 1000; turn++) {
                sum += even(2);
            }
        }
        System.exit(sum & 1);
    }
}
