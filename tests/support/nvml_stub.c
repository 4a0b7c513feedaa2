/* A stand-in for libnvidia-ml with the calls the collector makes.
 *
 * Every call reads a text file of `key value` lines again, so a test changes values live. A value
 * `!15` makes the call return error 15. A key that is not there is error 3, not supported. Keys of
 * a GPU start with its index: `0.temperature 64`. Several numbers are separated by blanks.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, MAX_CALLS = 4096 };
enum { KEY_SIZE = 64, LINE_SIZE = 512 };

typedef unsigned long long u64;
typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { u64 total, free, used; } memory_t;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned version, sensor; int celsius; } temperature_t;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } process_t;

static char values_path[1024];
static char calls[MAX_CALLS][KEY_SIZE];
static int call_count;

void nvml_stub_use(const char *path) {
    snprintf(values_path, sizeof values_path, "%s", path);
    call_count = 0;
}

int nvml_stub_calls(const char *key) {
    int count = 0;
    for (int i = 0; i < call_count; i++) count += strcmp(calls[i], key) == 0;
    return count;
}

static int look_up(const char *key, char *value, size_t size) {
    char line[LINE_SIZE];
    size_t length = strlen(key);
    int result = NOT_SUPPORTED;
    FILE *file = fopen(values_path, "r");
    if (call_count < MAX_CALLS) snprintf(calls[call_count++], KEY_SIZE, "%s", key);
    if (!file) return NOT_SUPPORTED;
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, key, length) || line[length] != ' ') continue;
        line[strcspn(line, "\n")] = 0;
        result = line[length + 1] == '!' ? atoi(line + length + 2) : SUCCESS;
        snprintf(value, size, "%s", line + length + 1);
    }
    fclose(file);
    return result;
}

static int device_text(const void *device, const char *name, char *value, size_t size) {
    char key[KEY_SIZE];
    snprintf(key, sizeof key, "%d.%s", (int)((size_t)device - 1), name);
    return look_up(key, value, size);
}

static int device_numbers(const void *device, const char *name, u64 *numbers, int count) {
    char text[LINE_SIZE];
    char *rest = text;
    int result = device_text(device, name, text, sizeof text);
    for (int i = 0; result == SUCCESS && i < count; i++) numbers[i] = strtoull(rest, &rest, 10);
    return result;
}

#define DEVICE_NUMBER(function, name, type)                  \
    int function(void *device, type *value) {                \
        u64 number;                                          \
        int result = device_numbers(device, name, &number, 1); \
        if (result == SUCCESS) *value = (type)number;        \
        return result;                                       \
    }

#define DEVICE_CHOICE(function, prefix)                                   \
    int function(void *device, unsigned which, unsigned *value) {         \
        char name[KEY_SIZE];                                              \
        u64 number;                                                       \
        snprintf(name, sizeof name, prefix "%u", which);                  \
        int result = device_numbers(device, name, &number, 1);            \
        if (result == SUCCESS) *value = (unsigned)number;                 \
        return result;                                                    \
    }

static int status(const char *key) {
    char text[LINE_SIZE];
    return look_up(key, text, sizeof text);
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return status("init"); }
int nvmlShutdown(void) { return status("shutdown"); }
const char *nvmlErrorString(int code) { (void)code; return "an error of the stub"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { return look_up("driver", text, size); }

int nvmlSystemGetProcessName(unsigned pid, char *text, unsigned size) {
    char key[KEY_SIZE];
    snprintf(key, sizeof key, "process.%u", pid);
    int result = look_up(key, text, size);
    return result == NOT_SUPPORTED ? NOT_FOUND : result;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    char text[LINE_SIZE];
    int result = look_up("count", text, sizeof text);
    if (result == SUCCESS) *count = (unsigned)atoi(text);
    return result;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    char text[LINE_SIZE];
    *device = (void *)((size_t)index + 1);
    return device_text(*device, "handle", text, sizeof text);
}

int nvmlDeviceGetName(void *d, char *text, unsigned size) {
    return device_text(d, "name", text, size);
}

int nvmlDeviceGetUUID(void *d, char *text, unsigned size) {
    return device_text(d, "uuid", text, size);
}

int nvmlDeviceGetUtilizationRates(void *device, utilization_t *rates) {
    u64 numbers[2];
    int result = device_numbers(device, "utilization", numbers, 2);
    if (result == SUCCESS) *rates = (utilization_t){(unsigned)numbers[0], (unsigned)numbers[1]};
    return result;
}

static int coding(void *device, const char *name, unsigned *percent, unsigned *period) {
    u64 number;
    int result = device_numbers(device, name, &number, 1);
    if (result == SUCCESS) { *percent = (unsigned)number; *period = 167000; }
    return result;
}

int nvmlDeviceGetEncoderUtilization(void *device, unsigned *percent, unsigned *period) {
    return coding(device, "encoder", percent, period);
}

int nvmlDeviceGetDecoderUtilization(void *device, unsigned *percent, unsigned *period) {
    return coding(device, "decoder", percent, period);
}

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    u64 n[3];
    int result = device_numbers(device, "memory_v1", n, 3);
    if (result == SUCCESS) *memory = (memory_t){n[0], n[2], n[1]};
    return result;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2_t *memory) {
    u64 n[4];
    int result = device_numbers(device, "memory", n, 4);
    if (result == SUCCESS) *memory = (memory_v2_t){memory->version, n[0], n[3], n[2], n[1]};
    return result;
}

int nvmlDeviceGetTemperatureV(void *device, temperature_t *temperature) {
    u64 number;
    int result = device_numbers(device, "temperature", &number, 1);
    if (result == SUCCESS) temperature->celsius = (int)number;
    return result;
}

int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *celsius) {
    u64 number;
    (void)sensor;
    int result = device_numbers(device, "temperature_old", &number, 1);
    if (result == SUCCESS) *celsius = (unsigned)number;
    return result;
}

DEVICE_CHOICE(nvmlDeviceGetTemperatureThreshold, "threshold")
DEVICE_CHOICE(nvmlDeviceGetClockInfo, "clock")
DEVICE_NUMBER(nvmlDeviceGetPowerUsage, "power", unsigned)
DEVICE_NUMBER(nvmlDeviceGetEnforcedPowerLimit, "power_limit", unsigned)
DEVICE_NUMBER(nvmlDeviceGetPowerManagementLimit, "power_limit_old", unsigned)
DEVICE_NUMBER(nvmlDeviceGetTotalEnergyConsumption, "energy", u64)
DEVICE_NUMBER(nvmlDeviceGetCurrentClocksEventReasons, "reasons", u64)
DEVICE_NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, "reasons_old", u64)
DEVICE_NUMBER(nvmlDeviceGetPerformanceState, "state", int)
DEVICE_NUMBER(nvmlDeviceGetFanSpeed, "fan", unsigned)

/* `processes` holds `pid bytes` pairs; 0 bytes stand for "not available". */
static int running(void *device, const char *name, unsigned *count, process_t *processes) {
    char text[LINE_SIZE];
    char *rest = text;
    unsigned found = 0;
    int result = device_text(device, name, text, sizeof text);
    if (result != SUCCESS) return result;
    for (unsigned pid; (pid = (unsigned)strtoul(rest, &rest, 10)) != 0; found++) {
        u64 used = strtoull(rest, &rest, 10);
        if (processes && found < *count)
            processes[found] = (process_t){pid, used ? used : ULLONG_MAX, 0, 0};
    }
    result = found > 0 && (!processes || *count < found) ? INSUFFICIENT_SIZE : SUCCESS;
    *count = found;
    return result;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_t *processes) {
    return running(device, "processes", count, processes);
}

int nvmlDeviceGetComputeRunningProcesses_v2(void *device, unsigned *count, process_t *processes) {
    return running(device, "processes_old", count, processes);
}
