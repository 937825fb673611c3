"""What operators see of the service while it runs: logs, metrics, readiness.

`record` is what is known of one request when it is over; `metrics` adds the records up, in files
that all processes of an instance share: `multiprocess_dir` is where they are, `dead_workers` keeps
what ended processes have counted. `readiness` says whether what is needed is there.
"""

import os

# Its being there tells prometheus_client, when that is imported, that there are several processes.
os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", "")
