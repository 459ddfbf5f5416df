"""What this room asks of Linux directly: system calls, the filter, cgroups, process tables and folders."""
