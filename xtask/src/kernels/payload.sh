# Runs in the guest: does the agent load on this kernel, count exactly and sample? Do its taps see
# what they see on the machine itself?
requests=50

uname -r
telltale check || { echo "telltale check failed"; exit 1; }

telltale run --listen 127.0.0.1:9464 >/tmp/agent.log 2>&1 &
agent=$!
fail() {
    echo "$1"
    cat /tmp/agent.log
    exit 1
}
tries=0
until wget -q -O /dev/null http://127.0.0.1:9464/readyz; do
    kill -0 $agent || fail "the agent ended"
    tries=$((tries + 1))
    [ $tries -lt 150 ] || fail "the agent is not ready"
    sleep 0.2
done

mkdir -p /www
echo hello >/www/page
httpd -p 127.0.0.1:8080 -h /www
done=0
while [ $done -lt $requests ]; do
    wget -q -O /dev/null http://127.0.0.1:8080/page || fail "request $done failed"
    done=$((done + 1))
done

# What was counted, summed over the labels of one route.
counted() {
    wget -q -O - http://127.0.0.1:9464/metrics |
        awk -v name="$1_count{" -v route="$2=\"/page\"" \
            'index($0, name) == 1 && index($0, route) { sum += $NF } END { print sum + 0 }'
}
tries=0
while :; do
    server=$(counted http_server_request_duration_seconds http_route)
    client=$(counted http_client_request_duration_seconds url_template)
    [ "$server $client" = "$requests $requests" ] && break
    tries=$((tries + 1))
    [ $tries -lt 25 ] || break
    sleep 0.4
done
echo "GUEST-COUNTED of $requests: $server at the server, $client at the client"
if [ "$server $client" != "$requests $requests" ]; then
    wget -q -O - http://127.0.0.1:9464/metrics | grep -E '^(telltale|http_.*_count)' | grep -v ' 0$'
    fail "the counts are wrong"
fi
# Something to sample.
(while :; do :; done) &
busy=$!
wget -q -O /tmp/folded "http://127.0.0.1:9464/debug/pprof/flamegraph?seconds=2&hz=199&format=folded" ||
    fail "no profile"
kill $busy
samples=$(awk '{ all += $NF } END { print all + 0 }' /tmp/folded)
echo "GUEST-SAMPLED $samples samples, $(wc -l </tmp/folded) stacks"
[ "$samples" -gt 100 ] || fail "too few samples"
kill -TERM $agent
wait $agent || fail "the agent did not end cleanly"

# From 7.0 on a program may be preempted, and the kernel leaves out another run of it meanwhile. An
# emulated program takes so long that this happens, and is counted: nothing to compare exactly.
case $(uname -r) in
[0-6].*) ;;
*)
    echo "GUEST-SUITES left out on this kernel"
    exit 0
    ;;
esac
[ -e /skipped ] || exit 0
# The end-to-end suites: where they find what they need, and how one is run.
export TELLTALE_BIN=/bin/telltale TELLTALE_PROGRAMS=/programs E2E_EMULATED=1 PATH=/bin:/usr/bin
TELLTALE_PYTHONS=$(cat /pythons)
TELLTALE_PYTHON_3_14=$(cat /python-3.14)
export TELLTALE_PYTHONS TELLTALE_PYTHON_3_14
failed=0
run_suite() {
    begun=$(date +%s)
    # shellcheck disable=SC2046 # one word a line
    "$1" --test-threads 1 $(cat /skipped) >/tmp/suite 2>&1 || {
        cat /tmp/suite
        echo "GUEST-SUITES $2: ${1##*/} failed"
        failed=1
        return
    }
    passed=$((passed + $(grep -c "^test .* ok$" /tmp/suite)))
    echo "$2: ${1##*/} took $(($(date +%s) - begun)) s"
}
# Once with each tap that this kernel has.
for tap in socket fentry walk; do
    echo "tap: $tap" >/tmp/tap.yaml
    if ! telltale check --config /tmp/tap.yaml >/tmp/check; then
        # Tracepoints of sockets came with 6.3; the other two are in every kernel of these.
        [ $tap = socket ] && grep -q "Linux 6.3" /tmp/check && continue
        cat /tmp/check
        echo "GUEST-SUITES $tap: refused"
        exit 1
    fi
    passed=0
    for suite in /suites/*; do
        [ -e "$suite" ] || continue
        E2E_TAP=$tap run_suite "$suite" $tap
    done
    echo "GUEST-SUITES $tap: $passed tests passed"
done
for suite in /suites-once/*; do
    [ -e "$suite" ] || continue
    passed=0
    name=${suite##*/}
    run_suite "$suite" "${name%-*}"
    echo "GUEST-SUITES ${name%-*}: $passed tests passed"
done
exit $failed
