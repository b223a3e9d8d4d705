// The routes of requests_app.py on Go's net/http: requests_app PORT.
package main

import (
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

const spent = 4 * time.Millisecond

//go:noinline
func spend_a() {
	for end := time.Now().Add(spent); time.Now().Before(end); {
	}
}

//go:noinline
func spend_b() {
	for end := time.Now().Add(spent); time.Now().Before(end); {
	}
}

func main() {
	http.HandleFunc("/a/", func(response http.ResponseWriter, _ *http.Request) {
		spend_a()
		io.WriteString(response, "a\n")
	})
	http.HandleFunc("/b/", func(response http.ResponseWriter, _ *http.Request) {
		spend_b()
		io.WriteString(response, "b\n")
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
