"""The HTTP service as a program: the application, what runs beside it, and how it is watched."""
