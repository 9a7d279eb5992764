"""The rules that every plug-in must hold, and the scaffold of a new one."""
