#!/bin/sh
# Stands in for `distant plugin-worker --exec PATH`: a session of its own, then the plugin.
# The plugin is run as a script, since a file that was just written may still be "busy".
for path; do :; done
exec setsid sh "$path"
