#!/bin/sh
# The command of the packaged AstraLog, with the data directory of the packaged service.
if [ -z "${ASTRALOG_DATA_DIR:-}" ]; then
  ASTRALOG_DATA_DIR=$(sed -n 's/^ASTRALOG_DATA_DIR=//p' /etc/astralog/astralog.env 2>/dev/null | tail -n 1)
  export ASTRALOG_DATA_DIR="${ASTRALOG_DATA_DIR:-/var/lib/astralog}"
fi
exec @HOME@/bin/astralog "$@"
