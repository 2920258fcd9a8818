"""Train chest X-ray foundation models on less data and less compute: a reproducible study."""

import os

__version__ = "0.1.0"

# Libraries read these when they are imported, so they are set before any is: whichever way the study is started, models
# come from the local cache and nothing reports home. ``--online``, or a value of the user's own, lifts the first three.
NETWORK_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
for _name in (*NETWORK_SWITCHES, "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")
