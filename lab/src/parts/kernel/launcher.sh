#!/bin/sh
# Starts the program NAME.program beside this file, NAME, with the loader and the libraries of the tree they are in.
self=$(readlink -f "$0")
root=${self%/usr/*}
libraries=$root/usr/lib/x86_64-linux-gnu
older=$root/lib/x86_64-linux-gnu
loader=$libraries/ld-linux-x86-64.so.2
[ -e "$loader" ] || loader=$older/ld-linux-x86-64.so.2
exec "$loader" --library-path "$libraries:$older" --argv0 "$0" "$self.program" "$@"
