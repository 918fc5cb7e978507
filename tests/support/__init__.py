"""What several test modules use. The environment is set here: before torch is imported."""

import os

os.environ |= {
    # several tests run at a time: threads of each on all cores would wait for one another
    "OMP_NUM_THREADS": "1",
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_X_DISABLE_STATS": "true",
    "WANDB_X_DISABLE_MACHINE_INFO": "true",
}
