"""karst in GDB: commands, settings and functions over the engine, libkarst.so."""
