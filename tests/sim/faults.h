// What goes wrong in a run, when and where.
#ifndef SIM_FAULTS_H
#define SIM_FAULTS_H

#include <stdint.h>

void faults_begin(void);
// From now on everybody lives, everything arrives, nobody is held up.
void faults_end(void);
uint64_t faults_count(void);

#endif
