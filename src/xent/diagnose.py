def diagnose(i,t): return []
