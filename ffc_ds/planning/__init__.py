"""What a run will need of a cluster, counted before there is one."""
