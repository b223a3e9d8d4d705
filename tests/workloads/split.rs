//! As `split.c`, in Rust, on a thread: `rustc -O`, which keeps no frame pointers.

use std::hint::black_box;
use std::io::Write;

const DEPTH: u32 = 60;

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

unsafe extern "C" {
    fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
}

const CLOCK_THREAD_CPUTIME_ID: i32 = 3;

fn thread_cpu_ns() -> i64 {
    let mut now = Timespec {
        seconds: 0,
        nanoseconds: 0,
    };
    // SAFETY: the time has the layout of x86-64's `struct timespec` and outlives the call.
    unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &mut now) };
    now.seconds * 1_000_000_000 + now.nanoseconds
}

/// What a turn took too long is taken off the next one.
fn burn(owed_ns: &mut i64) {
    let begin = thread_cpu_ns();
    let mut used = 0;
    while used < *owed_ns {
        for number in 0..10_000_u64 {
            black_box(number);
        }
        used = thread_cpu_ns() - begin;
    }
    *owed_ns -= used;
}

macro_rules! nest {
    ($nest:ident, $spend:ident, $number:literal) => {
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub fn $spend(owed_ns: &mut i64) {
            burn(owed_ns);
            // Equal functions would be merged into one.
            black_box($number);
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        pub fn $nest(depth: u32, owed_ns: &mut i64) {
            if depth == 0 {
                $spend(owed_ns);
            } else {
                $nest(depth - 1, owed_ns);
            }
            // Work after the call keeps it from being a jump.
            black_box(depth + $number);
        }
    };
}
nest!(nest_fifty, spend_fifty, 50);
nest!(nest_thirty, spend_thirty, 30);
nest!(nest_twenty, spend_twenty, 20);

fn work(life_ns: i64) {
    let mut random = 88_172_645_463_325_252_u64;
    let mut owed_ns = [0; 3];
    while thread_cpu_ns() < life_ns {
        // Marsaglia's xorshift64.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // 1 to 3 ms a tenth.
        let tenth_ns = 1_000_000 + (random % 2_000_000) as i64;
        owed_ns[0] += 5 * tenth_ns;
        nest_fifty(DEPTH - 1, &mut owed_ns[0]);
        owed_ns[1] += 3 * tenth_ns;
        nest_thirty(DEPTH - 1, &mut owed_ns[1]);
        owed_ns[2] += 2 * tenth_ns;
        nest_twenty(DEPTH - 1, &mut owed_ns[2]);
    }
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok());
    println!("ready");
    let _ = std::io::stdout().flush();
    let life_ns = seconds.unwrap_or(10) * 1_000_000_000;
    let worker = std::thread::spawn(move || work(life_ns));
    let _ = worker.join();
}
