"""The shell scripts that run on a device: constant texts for any POSIX sh (dash, bash, mksh of Android, ash).

All variable data arrives as positional parameters; nothing is inserted into these texts. Each script prints a mark of
the caller before its answer, so that the caller can distinguish the answer from messages of a login shell.
"""

from __future__ import annotations

# Runs a program. Ends it (TERM, five seconds later KILL) when stdin ends, when the session gets a signal, and at the
# time limit. Stdin ends when the link is lost or the caller is gone.
# $1 directory, $2 name of the log or -, $3 bytes of stdin for the program, $4 seconds, $5 mark, $6 program,
# then the whole command (`env A=B program ...` or `program ...`).
# Prints `MARK pid N`, the program's stdout if there is no log, `MARK lost` if stdin ended before the program, and
# `MARK exit STATUS`.
WATCH = r"""
directory=$1 log=$2 bytes=$3 limit=$4 mark=$5 program=$6
shift 6
refuse() { echo "$mark refused $1"; exit 0; }
# Writing to a connection that is gone must not end this script before it has ended the program. (A trap, unlike an
# ignored signal, is not inherited by the program.)
trap : PIPE
cd "$directory" || refuse directory
group=
case $program in
*/*) { [ -f "$program" ] && [ -x "$program" ]; } || refuse program; file=1 ;;
*) found=$(command -v "$program") || refuse program; case $found in /*) file=1 ;; *) file= ;; esac ;;
esac
[ -n "$file" ] && command -v setsid >/dev/null 2>&1 && group=setsid
input=/dev/null
if [ "$bytes" -gt 0 ]; then
  input=.stdin-$$
  head -c "$bytes" >"$input" || refuse stdin
fi
# The background job opens its log after this shell has said its number: until then an earlier program's would be read.
[ "$log" = - ] || : >"$log" || refuse directory
exec 3<&0
echo
echo "$mark begin"
if [ "$log" = - ]; then
  $group "$@" <"$input" 3<&- &
else
  $group "$@" <"$input" >"$log" 2>&1 3<&- &
fi
pid=$!
exec 2>/dev/null
[ "$log" = - ] || echo "$mark pid $pid"
end() {
  kill -s TERM -- "-$pid" || kill -s TERM "$pid"
  n=0
  while [ "$n" -lt 5 ] && kill -0 "$pid"; do
    sleep 1
    n=$((n + 1))
  done
  kill -s KILL -- "-$pid" || kill -s KILL "$pid"
}
# exec, because a redirection of the whole subshell leaves copies of the connection open in mksh.
(
  exec </dev/null >/dev/null 2>&1 3<&-
  while [ "$limit" -gt 0 ]; do
    nap=$limit
    [ "$nap" -lt 10 ] || nap=10
    sleep "$nap"
    limit=$((limit - nap))
  done
  end
) &
timer=$!
(
  trap '' PIPE
  exec <&3 2>/dev/null 3<&-
  while read -r line; do :; done
  echo
  echo "$mark lost"
  end >/dev/null 2>&1
) &
reader=$!
trap 'again=1; (exec </dev/null >/dev/null 2>&1 3<&-; end) &' HUP INT TERM
while :; do
  again=
  wait "$pid"
  code=$?
  [ -n "$again" ] || break
done
# KILL, because mksh loses a TERM that comes while a subshell starts. What is left of the timer is a nap of ten seconds.
kill -s KILL "$timer" "$reader"
kill -s KILL -- "-$pid"
[ "$input" = /dev/null ] || rm -f "$input"
echo
echo "$mark exit $code"
"""

# Keeps the directory of a run as long as stdin is open, then removes it. Stdin also ends when the link is lost.
# $1 mark, $2 base or nothing for $HOME/.cache/compact-edge, $3 name of the run. Prints `MARK ready BASE`.
# Also removes directories of runs whose keeper on this host no longer runs, for example after a power loss. (Hosts may
# share home directories.) After a lost link a new keeper takes over the directory, and the earlier one ignores it.
KEEP = r"""
trap : PIPE
umask 077
base=$2
if [ -z "$base" ]; then
  case $HOME in
  /*) base=$HOME/.cache/compact-edge ;;
  *) echo "$1 refused home"; exit 0 ;;
  esac
fi
mkdir -p "$base/runs/$3" "$base/files" || { echo "$1 refused directory"; exit 0; }
directory=$base/runs/$3
host=$(uname -n)
echo "$$ $host" >"$directory/.keeper" || { echo "$1 refused directory"; rm -rf "$directory"; exit 0; }
for other in "$base"/runs/*; do
  [ -f "$other/.keeper" ] || continue
  read -r keeper place <"$other/.keeper"
  [ "$place" = "$host" ] || continue
  kill -0 "$keeper" 2>/dev/null || rm -rf "$other"
done
leave() {
  trap '' HUP INT TERM
  read -r keeper place <"$directory/.keeper" && [ "$keeper" = "$$" ] && rm -rf "$directory"
  exit 0
}
trap leave HUP INT TERM
echo
echo "$1 ready $base"
exec 2>/dev/null
while read -r line; do :; done
leave
"""

_DIGEST = r"""
LC_ALL=C
export LC_ALL
digest() {
  sha256sum <"$1" 2>/dev/null || shasum -a 256 <"$1" 2>/dev/null || toybox sha256sum <"$1" 2>/dev/null
}
"""

# $1 folder of the file, $2 its path. Prints `hash SHA256` if the file exists, otherwise the free space from df.
LOOK = (
    _DIGEST
    + r"""
if [ -f "$2" ]; then
  echo "hash $(digest "$2")"
else
  mkdir -p "$1" || exit 1
  echo "free"
  df -Pk "$1" 2>/dev/null || df -k "$1"
fi
"""
)

# $1 the copy, $2 its final path, $3 its sha256. Prints `placed`, or prints `differs SHA256` and removes the copy.
SETTLE = (
    _DIGEST
    + r"""
found=$(digest "$1")
found=${found%% *}
if [ "$found" = "$3" ]; then
  mv -f "$1" "$2" && echo placed
else
  rm -f "$1"
  echo "differs $found"
fi
"""
)

# $1 path. Prints `hash SHA256`.
HASH = _DIGEST + 'echo "hash $(digest "$1")"\n'

# $1 mark, $2 path. Reads the file from stdin. Prints `MARK stored STATUS`.
STORE = 'cat >"$2"\ncode=$?\necho\necho "$1 stored $code"\n'

# $1 mark, $2 path. The file follows the line `MARK begin`.
FETCH = '[ -f "$2" ] && [ -r "$2" ] || exit 66\necho\necho "$1 begin"\nexec cat <"$2"\n'

# $1 directory of the run, then the command: a program that reads its own stdin.
# The shell does not exec: a program ended by a signal must give 128 or more, not 255, which ssh uses for a lost link.
CONVERSE = 'cd "$1" || exit 125\nshift\n"$@"\nexit $?\n'

# $1 process, $2 directory of the run. Ends a process that outlived its watcher, if it certainly belongs to the run.
END = r"""
n=0
while [ "$n" -lt 8 ] && kill -0 "$1" 2>/dev/null; do
  [ "$(readlink "/proc/$1/cwd" 2>/dev/null)" = "$2" ] || exit 0
  [ "$n" -lt 6 ] || kill -s KILL "$1"
  sleep 1
  n=$((n + 1))
done
"""

# $1 mark. Holds a connection open until stdin ends. Prints `MARK ready`.
HOLD = 'echo\necho "$1 ready"\nwhile read -r line; do :; done\n'

# $1 base. Over ssh it may be the cache of this program on that machine, which has other contents.
CLEAN = 'rm -rf "$1/files" "$1/runs"\nrmdir "$1" 2>/dev/null\n:\n'
