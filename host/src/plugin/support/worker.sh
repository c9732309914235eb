#!/bin/sh
# Stands in for `distant plugin-worker` in the unit tests, where that program is not there: runs a
# plugin that is a shell script, in a session of its own. The script is read and not executed, as
# the test that wrote it may have forked while it was open ("text file busy").
for script; do :; done
exec setsid sh "$script"
