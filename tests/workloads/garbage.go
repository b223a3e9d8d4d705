// Trees that are built and let go of for SECONDS: much of the time is the garbage collector's.
//
//	go build -o garbage garbage.go && ./garbage [SECONDS]
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

type tree struct {
	left, right *tree
	weight      [64]byte
}

//go:noinline
func grow(depth int) *tree {
	if depth == 0 {
		return &tree{}
	}
	return &tree{left: grow(depth - 1), right: grow(depth - 1)}
}

func main() {
	seconds := 10
	if len(os.Args) > 1 {
		seconds, _ = strconv.Atoi(os.Args[1])
	}
	fmt.Println("ready")
	var wood [8]*tree
	end := time.Now().Add(time.Duration(seconds) * time.Second)
	for turn := 0; time.Now().Before(end); turn++ {
		wood[turn%len(wood)] = grow(13)
	}
}
