import com.sun.management.OperatingSystemMXBean;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.LongAdder;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KTable;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;

/**
 * Counts records by key into a table, and with BENCH_OUT sends each change of a count to that topic. exactly_once_v2,
 * RocksDB, everything else as it comes (commit every 100 ms, record caches of 10 MiB), one thread per core.
 *
 * The clock runs from RUNNING to the moment when the group's committed offsets have passed all records.
 */
public final class Count {
    private static final OperatingSystemMXBean OS =
            (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();

    public static void main(String[] arguments) throws Exception {
        Map<String, String> env = System.getenv();
        String app = env.get("MILLSTREAM_APP_ID");
        long records = Long.parseLong(env.get("BENCH_RECORDS"));
        LongAdder seen = new LongAdder();

        StreamsBuilder builder = new StreamsBuilder();
        KTable<String, Long> counts = builder
                .stream(env.get("BENCH_TOPIC"), Consumed.with(Serdes.String(), Serdes.ByteArray()))
                .peek((key, value) -> seen.increment())
                .groupByKey(Grouped.with(Serdes.String(), Serdes.ByteArray()))
                .count(Materialized.as("counts"));
        if (env.containsKey("BENCH_OUT")) {
            counts.toStream().to(env.get("BENCH_OUT"), Produced.with(Serdes.String(), Serdes.Long()));
        }

        Properties config = new Properties();
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, app);
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, env.get("BENCH_SERVERS"));
        config.put(StreamsConfig.STATE_DIR_CONFIG, env.get("MILLSTREAM_DATA_DIR"));
        config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        config.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, Runtime.getRuntime().availableProcessors());
        config.put("auto.offset.reset", "earliest");

        long[] began = new long[2];
        try (KafkaStreams streams = new KafkaStreams(builder.build(), config);
                Admin admin = Admin.create(Map.of("bootstrap.servers", env.get("BENCH_SERVERS")))) {
            streams.setStateListener((now, before) -> {
                if (now == KafkaStreams.State.RUNNING && began[0] == 0) {
                    began[0] = System.nanoTime();
                    began[1] = OS.getProcessCpuTime();
                }
            });
            Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
            streams.start();
            while (seen.sum() < records || committed(admin, app) < records) {
                Thread.sleep(10);
            }
            double wall = (System.nanoTime() - began[0]) / 1e9;
            double cpu = (OS.getProcessCpuTime() - began[1]) / 1e9;
            Path result = Path.of(env.get("BENCH_RESULT"));
            Path tmp = result.resolveSibling("result.tmp");
            Files.writeString(tmp, "{\"rows\": %d, \"wall\": %s, \"cpu\": %s}".formatted(records, wall, cpu));
            Files.move(tmp, result, StandardCopyOption.ATOMIC_MOVE);
            Thread.sleep(Long.MAX_VALUE); // until SIGTERM, as every contender
        }
    }

    private static long committed(Admin admin, String group) throws Exception {
        return admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().values().stream()
                .mapToLong(o -> o == null ? 0 : o.offset())
                .sum();
    }
}
