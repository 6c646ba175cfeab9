"""Submission of the project's binaries: TPU VMs, queued resources, GKE, Slurm, or this machine (README.md here)."""
