// As split.c, in Go: three functions at the bottom of 60 nested calls, 50, 30 and 20 parts of the
// thread's CPU time.
//
//	go build -o split split.go && ./split [SECONDS]
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"
)

const depth = 60

const clockThreadCPUTime = 3

func threadCPUNs() int64 {
	var now syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockThreadCPUTime, uintptr(unsafe.Pointer(&now)), 0)
	return now.Nano()
}

var sink uint64

// What a turn took too long is taken off the next one.
func burn(owedNs *int64) {
	begin := threadCPUNs()
	var used int64
	for used < *owedNs {
		for i := uint64(0); i < 100000; i++ {
			sink += i
		}
		used = threadCPUNs() - begin
	}
	*owedNs -= used
}

//go:noinline
func nest_fifty(depth int, owedNs *int64) {
	if depth == 0 {
		burn(owedNs)
	} else {
		nest_fifty(depth-1, owedNs)
	}
	sink++
}

//go:noinline
func nest_thirty(depth int, owedNs *int64) {
	if depth == 0 {
		burn(owedNs)
	} else {
		nest_thirty(depth-1, owedNs)
	}
	sink += 2
}

//go:noinline
func nest_twenty(depth int, owedNs *int64) {
	if depth == 0 {
		burn(owedNs)
	} else {
		nest_twenty(depth-1, owedNs)
	}
	sink += 3
}

func main() {
	seconds := 10
	if len(os.Args) > 1 {
		seconds, _ = strconv.Atoi(os.Args[1])
	}
	runtime.LockOSThread()
	fmt.Println("ready")
	var owedNs [3]int64
	random := uint64(88172645463325252)
	for threadCPUNs() < int64(seconds)*1_000_000_000 {
		// Marsaglia's xorshift64.
		random ^= random << 13
		random ^= random >> 7
		random ^= random << 17
		// 1 to 3 ms a tenth.
		tenthNs := 1_000_000 + int64(random%2_000_000)
		owedNs[0] += 5 * tenthNs
		nest_fifty(depth-1, &owedNs[0])
		owedNs[1] += 3 * tenthNs
		nest_thirty(depth-1, &owedNs[1])
		owedNs[2] += 2 * tenthNs
		nest_twenty(depth-1, &owedNs[2])
	}
}
