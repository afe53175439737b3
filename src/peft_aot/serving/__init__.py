"""Many tasks on one frozen backbone, answered in shared batches; nothing here knows HTTP."""
