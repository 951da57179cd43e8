"""Survey: section 3.4.  Agents that see, read an instruction and act."""
