"""What can be found wrong with the machines, the data and the settings of a run before it is started."""
