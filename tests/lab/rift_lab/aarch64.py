def machine(repository, run, wishes):
    raise NotImplementedError
