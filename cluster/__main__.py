"""`python -m cluster` is `drive`, where the code is there and not installed, as in a Ray job."""

import sys

from cluster.main import main

sys.exit(main())
