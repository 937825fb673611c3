"""What operators see of the service while it runs.

`record` is what is known of one request when it is over; `metrics` adds the records up, in files
that all processes of an instance share: `folder` is where they are, `folding` keeps what ended
processes have counted. `readiness` says whether what is needed is there.
"""

import os

# Its being there tells prometheus_client, when that is imported, that there are several processes.
os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", "")
